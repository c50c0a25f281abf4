//! Reads that have to wait for the medium, side by side.
//!
//! What is in the cache is read by the thread of the session; a hand-over would cost more than the read. The misses of a
//! batch are read by a few threads at once, so that a client with many reads under way gets the depth of the medium.
//! The threads belong to one connection: a disk that hangs takes no other disk's readers with it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use secondsite_disk::{DiskError, Place, Result};

use crate::export::Export;

/// Threads of a connection; with the session's own as many as a batch has requests.
const THREAD_COUNT_MAX: usize = 15;

/// A read to be done.
pub(crate) struct Job {
    /// Which of its batch.
    pub(crate) slot: usize,
    pub(crate) offset: u64,
    pub(crate) buffer: Vec<u8>,
}

/// A read that was done.
pub(crate) struct Done {
    pub(crate) slot: usize,
    pub(crate) buffer: Vec<u8>,
    pub(crate) result: Result<()>,
}

/// The threads, started when they are needed.
pub(crate) struct Readers {
    export: Arc<dyn Export>,
    jobs: Option<Sender<Job>>,
    waiting: Arc<Mutex<Receiver<Job>>>,
    give_back: Sender<Done>,
    back: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(crate) fn new(export: Arc<dyn Export>) -> Self {
        let (jobs, waiting) = channel();
        let (give_back, back) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        Self { export, jobs: Some(jobs), waiting, give_back, back, threads: Vec::new() }
    }

    /// Does all reads, in any order; the calling thread takes the first itself.
    pub(crate) fn read(&mut self, jobs: impl ExactSizeIterator<Item = Job>) -> Vec<Done> {
        let count = jobs.len();
        self.start_threads(count.saturating_sub(1));
        let mut jobs = jobs;
        let own = jobs.next();
        let mut done = Vec::with_capacity(count);
        for job in jobs {
            match self.jobs.as_ref().filter(|_| !self.threads.is_empty()) {
                // Sending fails when nobody receives, and `waiting` is ours.
                Some(sender) => drop(sender.send(job)),
                None => done.push(carry_out(&*self.export, job)),
            }
        }
        done.extend(own.map(|job| carry_out(&*self.export, job)));
        done.extend((done.len()..count).map_while(|_| self.back.recv().ok()));
        done
    }

    fn start_threads(&mut self, wanted: usize) {
        while self.threads.len() < wanted.min(THREAD_COUNT_MAX) {
            let (export, waiting, give_back) =
                (self.export.clone(), self.waiting.clone(), self.give_back.clone());
            let work = move || {
                // The lock is held while waiting: one thread waits for a job, the others for their turn.
                while let Some(job) = { waiting.lock().recv().ok() } {
                    let mut promise = Promise { give_back: &give_back, slot: job.slot, done: None };
                    promise.done = Some(carry_out(&*export, job));
                }
            };
            let Ok(thread) = std::thread::Builder::new().name("nbd-read".into()).spawn(work) else { return };
            self.threads.push(thread);
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic of the export was answered as an error of its read.
            let _ = thread.join();
        }
    }
}

fn carry_out(export: &dyn Export, mut job: Job) -> Done {
    let result = export.device().read_at(job.offset, &mut job.buffer);
    Done { slot: job.slot, buffer: job.buffer, result }
}

/// Gives something back also when the read panics, as the session waits for it.
struct Promise<'s> {
    give_back: &'s Sender<Done>,
    slot: usize,
    done: Option<Done>,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let panicked = || {
            let error = io::Error::other("the read panicked");
            let result = Err(DiskError::ReadFailed(Place::whole("".as_ref()), error));
            Done { slot: self.slot, buffer: Vec::new(), result }
        };
        let done = self.done.take().unwrap_or_else(panicked);
        // The session is gone: nobody waits for it any more.
        let _ = self.give_back.send(done);
    }
}
