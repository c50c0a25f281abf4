//! Flushes that wait on a thread of their own while the session goes on.
//!
//! A client with many requests under way does not wait for its FLUSH before it writes on, and a sync takes as long as a
//! hundred writes. So a flush that came with other requests goes to this thread; those that come while it syncs share the
//! next sync. A client that waits for each of its flushes has them done by the session itself: a hand-over would only add
//! a wake-up.
//!
//! A flush owes durability to writes that were answered before it was sent. All of them are in log and disk when it is
//! handed over, so carrying out later writes meanwhile breaks nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::codec::request::RequestHeader;
use crate::counters::{LiveCounters, Tally};
use crate::error::errno_of;
use crate::export::Export;
use crate::wire::Sender;

use super::lanes::HangUp;
use super::out::{Answers, Out};

/// Batches with flushes that wait for the thread. A client that sends more without reading replies waits.
const WAITING_MAX: usize = 16;

/// The thread of a connection, started when it is needed.
pub(crate) struct Flusher {
    /// What the thread is made of, until it is started. `None` also where nobody but the session can send.
    parts: Option<Parts>,
    to: Option<SyncSender<Vec<RequestHeader>>>,
    thread: Option<JoinHandle<()>>,
    waiting: Arc<AtomicUsize>,
}

pub(crate) struct Parts {
    pub(crate) export: Arc<dyn Export>,
    pub(crate) sender: Box<dyn Sender>,
    pub(crate) answers: Answers,
    pub(crate) counters: Arc<LiveCounters>,
}

impl Flusher {
    pub(crate) fn new(parts: Option<Parts>) -> Self {
        Self { parts, to: None, thread: None, waiting: Arc::default() }
    }

    /// Whether flushes were handed over that are not answered yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Hands flushes over; `false` when there is no thread and the caller has to flush.
    pub(crate) fn take(&mut self, headers: &mut Vec<RequestHeader>) -> bool {
        self.start();
        let Some(to) = &self.to else { return false };
        self.waiting.fetch_add(1, Ordering::AcqRel);
        match to.send(std::mem::take(headers)) {
            Ok(()) => true,
            Err(back) => {
                *headers = back.0;
                self.to = None;
                false
            }
        }
    }

    fn start(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        let (to, batches) = sync_channel(WAITING_MAX);
        let waiting = self.waiting.clone();
        let work = move || run(parts, &batches, &waiting);
        // Where there can be no thread, the session flushes as before.
        self.thread = std::thread::Builder::new().name("nbd-flush".into()).spawn(work).ok();
        self.to = self.thread.is_some().then_some(to);
    }
}

fn run(mut parts: Parts, batches: &Receiver<Vec<RequestHeader>>, waiting: &AtomicUsize) {
    let mut out = Out::default();
    while let Ok(mut headers) = batches.recv() {
        let mut count = 1;
        for more in batches.try_iter() {
            headers.extend(more);
            count += 1;
        }
        let mut hang_up = HangUp { sender: &mut *parts.sender, is_due: true };
        let result = parts.export.device().flush().map_err(|e| errno_of(&e));
        let mut tally = Tally { flush_count: 1, ..Tally::default() };
        for header in &headers {
            parts.answers.flushed(&mut out, &mut tally, header, result);
        }
        parts.counters.add(&mut tally);
        waiting.fetch_sub(count, Ordering::AcqRel);
        hang_up.is_due = out.send(hang_up.sender).is_err();
        if hang_up.is_due {
            return;
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.to = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the export has ended the session already.
            let _ = thread.join();
        }
    }
}
