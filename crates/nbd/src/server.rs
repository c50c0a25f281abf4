//! The server: one thread that accepts, one for each connection, and the ways to stop them.
//!
//! Stopping closes the receiving half of a connection: what was received is carried out and answered, then the session
//! ends by itself. Whoever does not take its replies within the grace is cut off. Both [`NbdServer::stop`] and
//! [`NbdServer::remove_export`] return when no session is left that could touch the disk.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::catalog::Catalog;
use crate::counters::{Counters, LiveCounters};
use crate::error::{NbdError, Result};
use crate::export::Export;
use crate::handshake::Entered;
use crate::listen::Listener;
use crate::options::{Listen, ServerOptions};
use crate::session::{Common, End, serve};
use crate::tls::Tls;
use crate::wire::{Link, Socket};

/// Pause after an accept that failed, for lack of file descriptors for example.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A running server. Dropping it stops it.
pub struct NbdServer {
    shared: Arc<Shared>,
    address: Listen,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    common: Common,
    listener: Listener,
    is_stopping: AtomicBool,
    sessions: Mutex<Sessions>,
    session_ended: Condvar,
}

#[derive(Default)]
struct Sessions {
    next_id: u64,
    live: HashMap<u64, Session>,
}

/// What others know of a session.
struct Session {
    socket: Arc<Socket>,
    is_stopping: Arc<AtomicBool>,
    /// The export that it has entered.
    export_name: Option<String>,
}

impl NbdServer {
    /// Listens, and serves until it is stopped.
    ///
    /// # Errors
    /// NBD_ADDRESS_IN_USE, NBD_LISTEN_FAILED, NBD_TLS_INVALID, NBD_EXPORT_EXISTS, NBD_EXPORT_NAME_INVALID,
    /// NBD_LIMIT_INVALID.
    pub fn start(options: ServerOptions) -> Result<Self> {
        options.limits.check()?;
        let catalog = Catalog::default();
        options.exports.into_iter().try_for_each(|(name, export)| catalog.add(&name, export))?;
        let tls = options.tls.as_ref().map(Tls::load).transpose()?;
        let core_count = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let counters = Arc::new(LiveCounters::default());
        let (limits, spin_us) = (options.limits, options.spin_us);
        let common = Common { catalog, limits, tls, counters, spin_us, core_count };
        let listener = Listener::open(&options.listen)?;
        let failed = |e| NbdError::ListenFailed(options.listen.to_string(), e);
        let address = listener.address().map_err(failed)?;
        let shared = Arc::new(Shared {
            common,
            listener,
            is_stopping: AtomicBool::new(false),
            sessions: Mutex::default(),
            session_ended: Condvar::new(),
        });
        let accepting = shared.clone();
        let acceptor = std::thread::Builder::new().name("nbd-accept".into());
        let acceptor = acceptor.spawn(move || accept_all(&accepting)).map_err(|e| {
            shared.listener.close();
            failed(e)
        })?;
        Ok(Self { shared, address, acceptor: Mutex::new(Some(acceptor)) })
    }

    /// Where clients find it, the port filled in.
    pub fn address(&self) -> &Listen {
        &self.address
    }

    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        self.shared.common.counters.snapshot()
    }

    /// Names of the exports, sorted.
    pub fn export_names(&self) -> Vec<String> {
        self.shared.common.catalog.list().into_iter().map(|(name, _)| name).collect()
    }

    /// Offers one more disk.
    ///
    /// # Errors
    /// NBD_EXPORT_EXISTS, NBD_EXPORT_NAME_INVALID.
    pub fn add_export(&self, name: &str, export: Arc<dyn Export>) -> Result<()> {
        self.shared.common.catalog.add(name, export)
    }

    /// Offers a disk no longer, and ends the connections to it; returns when none is left.
    ///
    /// # Errors
    /// NBD_EXPORT_NOT_FOUND.
    pub fn remove_export(&self, name: &str) -> Result<()> {
        self.shared.common.catalog.remove(name)?;
        self.shared.end_sessions(|session| session.export_name.as_deref() == Some(name));
        Ok(())
    }

    /// Takes no more connections, ends those there are, and returns when none is left. What was answered was carried
    /// out; making it durable is up to a FLUSH, of the client or of the owner of the disk. Calling it twice is safe.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.listener.close();
        if let Some(acceptor) = self.acceptor.lock().take() {
            // It cannot panic but by a bug; the sessions are ended all the same.
            let _ = acceptor.join();
        }
        self.shared.end_sessions(|_| true);
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Ends the sessions chosen and waits for them.
    fn end_sessions(&self, is_meant: impl Fn(&Session) -> bool) {
        let mut sessions = self.sessions.lock();
        for session in sessions.live.values().filter(|session| is_meant(session)) {
            session.is_stopping.store(true, Ordering::Release);
            session.socket.shutdown(Shutdown::Read);
        }
        let deadline = Instant::now() + Duration::from_millis(self.common.limits.stop_grace_ms);
        let mut is_cut_off = false;
        while sessions.live.values().any(&is_meant) {
            if is_cut_off {
                self.session_ended.wait(&mut sessions);
            } else if self.session_ended.wait_until(&mut sessions, deadline).timed_out() {
                is_cut_off = true;
                let meant = sessions.live.values().filter(|session| is_meant(session));
                meant.for_each(|session| session.socket.shutdown(Shutdown::Both));
            }
        }
    }

    /// Registers a connection; `None` when there are too many.
    fn register(self: &Arc<Self>, socket: Arc<Socket>) -> Option<Registered> {
        let mut sessions = self.sessions.lock();
        let counters = &self.common.counters;
        if sessions.live.len() >= self.common.limits.connection_count_max {
            LiveCounters::count(&counters.refused_count);
            return None;
        }
        let (id, is_stopping) = (sessions.next_id, Arc::new(AtomicBool::new(false)));
        sessions.next_id += 1;
        let session = Session { socket: socket.clone(), is_stopping: is_stopping.clone(), export_name: None };
        sessions.live.insert(id, session);
        LiveCounters::count(&counters.accepted_count);
        LiveCounters::count(&counters.connection_count);
        Some(Registered { shared: self.clone(), id, socket, is_stopping })
    }
}

/// A connection in the list of sessions, out of it when dropped.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
    socket: Arc<Socket>,
    is_stopping: Arc<AtomicBool>,
}

impl Registered {
    /// Notes the export, then looks whether it is still offered: whoever removes it does these two in the other order,
    /// so one of both sees the other.
    fn enter(&self, entered: &Entered) -> bool {
        if let Some(session) = self.shared.sessions.lock().live.get_mut(&self.id) {
            session.export_name = Some(entered.name.clone());
        }
        self.shared.common.catalog.has(&entered.name, &entered.export)
    }

    fn run(&self) {
        let common = &self.shared.common;
        let (time, stall) = (common.limits.handshake_time_ms, common.limits.send_stall_ms);
        let (time, stall) = (Duration::from_millis(time), Duration::from_millis(stall));
        let mut link = Link::new(self.socket.clone(), time, stall);
        let end = serve(common, &mut link, |entered| self.enter(entered), &self.is_stopping);
        let is_breach = match end {
            Ok(end) => end == End::Breach,
            // Too slow; everything else is a client that left.
            Err(e) => matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        };
        if is_breach {
            LiveCounters::count(&common.counters.breach_count);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.socket.shutdown(Shutdown::Both);
        let mut sessions = self.shared.sessions.lock();
        sessions.live.remove(&self.id);
        self.shared.common.counters.connection_count.fetch_sub(1, Ordering::Relaxed);
        self.shared.session_ended.notify_all();
    }
}

fn accept_all(shared: &Arc<Shared>) {
    while !shared.is_stopping.load(Ordering::Acquire) {
        let Ok(socket) = shared.listener.accept() else {
            if !shared.is_stopping.load(Ordering::Acquire) {
                std::thread::sleep(ACCEPT_RETRY);
            }
            continue;
        };
        let Some(registered) = shared.register(Arc::new(socket)) else { continue };
        // A thread that cannot be started drops the connection, and with it its place in the list.
        let _ = std::thread::Builder::new().name("nbd-session".into()).spawn(move || registered.run());
    }
}
