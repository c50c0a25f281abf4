//! A tracking directory in memory that loses power: names and contents that were not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use secondsite_hrl::LogFile;
use secondsite_hrl::faults::{MemoryLogFile, SplitMix};

use super::files::TrackFiles;

type Files = BTreeMap<PathBuf, Arc<MemoryLogFile>>;

/// Files in memory.
#[derive(Default)]
pub struct MemoryTrackFiles {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    live: Files,
    durable: Files,
    locked: BTreeSet<PathBuf>,
    /// Bytes that files may still grow by; `None` without a limit.
    is_full: bool,
}

struct Held {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.state.lock().locked.remove(&self.path);
    }
}

impl MemoryTrackFiles {
    /// An empty folder.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk is full from now on (files can be written inside of their size, none can grow), or has room again.
    /// Tracking files have their space already.
    pub fn set_full(&self, is_full: bool) {
        let mut state = self.state.lock();
        state.is_full = is_full;
        for file in state.live.values() {
            let size = file.size_bytes().unwrap_or(0);
            file.limit_space(is_full.then_some(size));
        }
    }

    /// A file, to damage it.
    pub fn file(&self, path: &Path) -> Option<Arc<MemoryLogFile>> {
        self.state.lock().live.get(path).cloned()
    }

    /// The paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state.lock().live.keys().cloned().collect()
    }

    /// The folder as a power loss leaves it, by a seed: of each name that was made, moved or removed since the folder
    /// was synced, and of each sector, the old or the new. What held it before must be dropped first.
    pub fn lose_power(&self, seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let state = self.state.lock();
        let mut kept = Files::new();
        let names: BTreeSet<&PathBuf> = state.live.keys().chain(state.durable.keys()).collect();
        for name in names {
            let (live, durable) = (state.live.get(name), state.durable.get(name));
            let survivor = if random.next().is_multiple_of(2) { live } else { durable };
            if let Some(file) = survivor {
                kept.insert(name.clone(), file.clone());
            }
        }
        let mut fresh = Files::new();
        for (name, file) in kept {
            let mark = random.next();
            let copy = after_power_loss(&file, mark);
            fresh.insert(name, Arc::new(copy));
        }
        let state = State { durable: fresh.clone(), live: fresh, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl TrackFiles for MemoryTrackFiles {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state.lock();
        if state.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = Arc::new(MemoryLogFile::new(path));
        state.live.insert(path.to_path_buf(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let state = self.state.lock();
        let file = state.live.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state.lock().live.remove(path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let file = state.live.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.live.insert(to.to_path_buf(), file);
        Ok(())
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let inside = state.live.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.durable = state.live.clone();
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let mut state = self.state.lock();
        if !state.locked.insert(path.to_path_buf()) {
            return Ok(None);
        }
        if !state.live.contains_key(path) {
            state.live.insert(path.to_path_buf(), Arc::new(MemoryLogFile::new(path)));
        }
        Ok(Some(Box::new(Held { state: self.state.clone(), path: path.to_path_buf() })))
    }
}

/// The content of a file after the power went.
fn after_power_loss(file: &Arc<MemoryLogFile>, seed: u64) -> MemoryLogFile {
    file.lose_power(seed);
    MemoryLogFile::with_content(file.path(), file.content())
}
