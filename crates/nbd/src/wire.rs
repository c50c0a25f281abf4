//! What a session reads from and writes to: a socket, a socket under TLS, or bytes in memory.
//!
//! A deadline bounds the handshake as a whole: each receive gets what is left of it, so dripping bytes does not extend
//! it. Later a receive may wait for ever (a guest may be idle for days), while a send that moves nothing for the stall
//! time fails.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::RecvFlags;

use crate::tls::Tls;

/// A connected socket; shared by the session, its second thread and who stops it.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // A peer that is gone already has done it for us.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }

    pub(crate) fn set_timeouts(&self, receive: Option<Duration>, send: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(receive).and_then(|()| stream.set_write_timeout(send))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(receive).and_then(|()| stream.set_write_timeout(send))
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => (&*stream).read(buffer),
            Self::Tcp(stream) => (&*stream).read(buffer),
        }
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = match self {
            Self::Unix(stream) => rustix::net::recv(stream, buffer, RecvFlags::DONTWAIT),
            Self::Tcp(stream) => rustix::net::recv(stream, buffer, RecvFlags::DONTWAIT),
        };
        Ok(received.map(|(count, _)| count)?)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => (&*stream).write(bytes),
            Self::Tcp(stream) => (&*stream).write(bytes),
        }
    }
}

/// Takes the replies.
pub(crate) trait Sender: Send {
    /// Sends all of it.
    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Ends the connection in both directions, which wakes who waits to receive.
    fn cut_off(&self) {}
}

/// Both directions of a connection.
pub(crate) trait Wire: Sender {
    /// Waits for bytes; 0 is the end.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Takes what is there; `WouldBlock` when nothing is, or when this wire cannot tell.
    fn receive_now(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// A sender for another thread, where there can be one.
    fn second_sender(&self) -> Option<Box<dyn Sender>>;

    /// Turns to TLS; the deadline of the handshake goes on.
    fn start_tls(&mut self, tls: &Tls) -> io::Result<()>;

    /// The handshake is over: no deadline any more.
    fn end_deadline(&mut self) -> io::Result<()>;

    /// Says goodbye where the wire has a word for it.
    fn finish(&mut self) {}

    /// Fills the buffer; `None` when the client left instead.
    fn receive_exact(&mut self, buffer: &mut [u8]) -> io::Result<Option<()>> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.receive(&mut buffer[filled..]) {
                Ok(0) => return Ok(None),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(()))
    }
}

/// A socket without TLS.
pub(crate) struct Plain {
    socket: Arc<Socket>,
    deadline: Option<Instant>,
    send_stall: Duration,
    /// One send at a time: a reply must not end up inside of another.
    sending: Arc<Mutex<()>>,
}

impl Plain {
    fn arm(&self) -> io::Result<()> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_timeouts(Some(left), Some(left))
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        self.socket.receive(buffer)
    }
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.arm()?;
        self.socket.send(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let part = parts.iter().find(|part| !part.is_empty());
        part.map_or(Ok(0), |part| self.write(part))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sender for Plain {
    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sending = self.sending.clone();
        let _turn = sending.lock();
        // write_all goes on after EINTR and fails at the first send that times out without moving a byte.
        self.write_all(bytes)
    }

    fn cut_off(&self) {
        self.socket.shutdown(Shutdown::Both);
    }
}

/// A socket, under TLS once it was started.
pub(crate) struct Link {
    plain: Plain,
    secure: Option<Box<rustls::ServerConnection>>,
}

impl Link {
    pub(crate) fn new(socket: Arc<Socket>, handshake_time: Duration, send_stall: Duration) -> Self {
        let deadline = Some(Instant::now() + handshake_time);
        let sending = Arc::default();
        Self { plain: Plain { socket, deadline, send_stall, sending }, secure: None }
    }
}

impl Sender for Link {
    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { plain, secure } = self;
        let Some(secure) = secure else { return plain.send_all(bytes) };
        let mut stream = rustls::Stream::new(&mut **secure, plain);
        stream.write_all(bytes).and_then(|()| stream.flush())
    }
}

impl Wire for Link {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { plain, secure } = self;
        let Some(secure) = secure else { return plain.read(buffer) };
        match rustls::Stream::new(&mut **secure, plain).read(buffer) {
            // A client that hangs up without TLS's goodbye: every request says how long it is, so nothing is cut unseen.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            received => received,
        }
    }

    fn receive_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.secure.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.plain.socket.receive_now(buffer)
    }

    fn second_sender(&self) -> Option<Box<dyn Sender>> {
        // The two directions of TLS share a state: a second thread could only wait for the first.
        if self.secure.is_some() {
            return None;
        }
        let Plain { socket, send_stall, sending, .. } = &self.plain;
        let (socket, sending) = (socket.clone(), sending.clone());
        Some(Box::new(Plain { socket, deadline: None, send_stall: *send_stall, sending }))
    }

    fn start_tls(&mut self, tls: &Tls) -> io::Result<()> {
        let mut connection = Box::new(tls.connection()?);
        while connection.is_handshaking() {
            if connection.complete_io(&mut self.plain)? == (0, 0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.secure = Some(connection);
        Ok(())
    }

    fn end_deadline(&mut self) -> io::Result<()> {
        self.plain.deadline = None;
        self.plain.socket.set_timeouts(None, Some(self.plain.send_stall))
    }

    fn finish(&mut self) {
        if let Some(secure) = &mut self.secure {
            secure.send_close_notify();
            // The client may be gone; then there is nobody to say goodbye to.
            let _ = secure.complete_io(&mut self.plain);
        }
    }
}
