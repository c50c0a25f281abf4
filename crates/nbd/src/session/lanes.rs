//! Where a batch is carried out: here, or on a second thread while this one receives the next.
//!
//! A small batch is carried out by the thread that received it, as a hand-over costs a wake-up. A batch with much to
//! write goes to the second thread, so that copying from the socket and copying to log and disk overlap. At most one
//! batch is with the second thread, and none is begun before it came back: requests stay in the order of their arrival.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::wire::{Sender, Wire};

use super::executor::Executor;
use super::intake::Batch;

/// Bytes of writes from which on a batch is handed over. A Unix socket gives at most some 200 KiB at once, so this is
/// about single long writes. Less helped 1 MiB and cost 64 KiB, in runs beside other work: a compromise, not an optimum.
const HAND_OVER_BYTES: usize = 256 << 10;

pub(crate) struct Lanes {
    executor: Arc<Mutex<Executor>>,
    second: Option<Second>,
    can_hand_over: bool,
    request_bytes_max: u32,
    /// A buffer that no thread uses.
    spare: Option<Batch>,
    is_away: bool,
}

struct Second {
    to: Option<SyncSender<Batch>>,
    back: Receiver<(Batch, io::Result<()>)>,
    thread: Option<JoinHandle<()>>,
}

impl Lanes {
    pub(crate) fn new(executor: Executor, request_bytes_max: u32) -> Self {
        Self {
            executor: Arc::new(Mutex::new(executor)),
            second: None,
            can_hand_over: true,
            request_bytes_max,
            spare: None,
            is_away: false,
        }
    }

    /// Carries out `batch`, here or elsewhere; afterwards it is ready to collect the next requests.
    pub(crate) fn run(&mut self, batch: &mut Batch, wire: &mut dyn Wire) -> io::Result<()> {
        self.wait()?;
        if batch.ending.is_none() && batch.write_bytes() >= HAND_OVER_BYTES && self.start_second(wire) {
            return self.hand_over(batch);
        }
        self.executor.lock().run(batch, wire)?;
        batch.begin();
        Ok(())
    }

    /// Waits for the batch that is with the second thread.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.is_away) {
            return Ok(());
        }
        let second = self.second.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        // The thread is gone when the export panicked in it.
        let (batch, result) = second.back.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.spare = Some(batch);
        result
    }

    fn hand_over(&mut self, batch: &mut Batch) -> io::Result<()> {
        let max = self.request_bytes_max;
        let mut next = self.spare.take().unwrap_or_else(|| Batch::new(max));
        next.continue_from(batch);
        let full = std::mem::replace(batch, next);
        let to = self.second.as_ref().and_then(|second| second.to.as_ref());
        to.ok_or(io::ErrorKind::BrokenPipe)?.send(full).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.is_away = true;
        Ok(())
    }

    /// `false` where there can be no second thread; then everything is done here.
    fn start_second(&mut self, wire: &dyn Wire) -> bool {
        if self.second.is_some() || !self.can_hand_over {
            return self.second.is_some();
        }
        let sender = wire.second_sender();
        self.second = sender.and_then(|sender| Second::start(self.executor.clone(), sender));
        self.can_hand_over = self.second.is_some();
        self.can_hand_over
    }
}

impl Second {
    fn start(executor: Arc<Mutex<Executor>>, mut sender: Box<dyn Sender>) -> Option<Self> {
        let (to, batches) = sync_channel::<Batch>(1);
        let (give_back, back) = sync_channel(1);
        let work = move || {
            while let Ok(batch) = batches.recv() {
                let mut hang_up = HangUp { sender: &mut *sender, is_due: true };
                let result = executor.lock().run(&batch, hang_up.sender);
                hang_up.is_due = result.is_err();
                if give_back.send((batch, result)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("nbd-apply".into()).spawn(work).ok()?;
        Some(Self { to: Some(to), back, thread: Some(thread) })
    }
}

/// Ends the connection when a batch failed or panicked: the first thread may be waiting for a request that a client
/// without its answer never sends.
pub(super) struct HangUp<'s> {
    pub(super) sender: &'s mut dyn Sender,
    pub(super) is_due: bool,
}

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        if self.is_due {
            self.sender.cut_off();
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.to = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the export has ended the session already.
            let _ = thread.join();
        }
    }
}
