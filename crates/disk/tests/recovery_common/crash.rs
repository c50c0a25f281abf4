//! What a death or a power loss leaves of an undo folder: some state between the one before a step and the one behind it.
//!
//! A step puts new segments in place (the index first), moves the epoch, and deletes old ones. Each put is synced before the
//! next thing happens, so a power loss leaves what a death leaves; but the epoch file is synced by drops alone, so a power
//! loss may take it back to any content since.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::Random;

const EPOCH: &str = "epoch";

/// The files of an undo folder that count.
pub struct Snapshot(BTreeMap<String, Vec<u8>>);

impl Snapshot {
    pub fn take(folder: &Path) -> Self {
        let counts = |name: &str| {
            name == EPOCH
                || (name.ends_with(".hrl") || name.ends_with(".hrx")) && !name.contains("unfinished")
        };
        let entries = fs::read_dir(folder).map(|entries| entries.filter_map(Result::ok).collect());
        let files: Vec<fs::DirEntry> = entries.unwrap_or_default();
        let named = files.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        let content = |name: &String| fs::read(folder.join(name)).expect("a file of the folder");
        Self(named.filter(|name| counts(name)).map(|name| (name.clone(), content(&name))).collect())
    }

    fn names(&self) -> BTreeSet<&String> {
        self.0.keys().filter(|name| *name != EPOCH).collect()
    }

    fn epoch(&self) -> Vec<u8> {
        self.0.get(EPOCH).cloned().unwrap_or_default()
    }

    fn put(&self, folder: &Path, name: &str) {
        fs::write(folder.join(name), &self.0[name]).expect("a file put back");
    }
}

/// Where inside of a step the process died.
#[derive(Debug, Clone, Copy)]
pub enum Death {
    BeforeItWasWhole,
    BetweenIndexAndLog,
    BeforeTheEpochMoved,
    BeforeAnythingWasDeleted,
    WhileDeleting,
}

impl Death {
    pub fn any(random: &mut Random) -> Self {
        match random.below(5) {
            0 => Self::BeforeItWasWhole,
            1 => Self::BetweenIndexAndLog,
            2 => Self::BeforeTheEpochMoved,
            3 => Self::BeforeAnythingWasDeleted,
            _ => Self::WhileDeleting,
        }
    }

    /// Brings a folder, in which a step has been carried out, to what a death inside of the step leaves.
    pub fn leave(self, folder: &Path, before: &Snapshot, random: &mut Random) {
        let after = Snapshot::take(folder);
        let (old, new) = (before.names(), after.names());
        let is_put_back = |random: &mut Random| match self {
            Self::WhileDeleting => random.one_in(2),
            _ => true,
        };
        for name in old.difference(&new) {
            if is_put_back(random) {
                before.put(folder, name);
            }
        }
        for name in new.difference(&old) {
            self.leave_new(folder, name, &after, random);
        }
        let epoch = match self {
            Self::BeforeAnythingWasDeleted | Self::WhileDeleting => after.epoch(),
            Self::BeforeTheEpochMoved => epoch_between(&before.epoch(), &after.epoch()),
            _ => before.epoch(),
        };
        if !(epoch.is_empty() && after.epoch().is_empty()) {
            fs::write(folder.join(EPOCH), epoch).expect("the epoch put back");
        }
    }

    fn leave_new(self, folder: &Path, name: &str, after: &Snapshot, random: &mut Random) {
        let is_index = name.ends_with(".hrx");
        let is_there = match self {
            Self::BeforeItWasWhole => false,
            Self::BetweenIndexAndLog => is_index,
            _ => true,
        };
        if is_there {
            return;
        }
        fs::remove_file(folder.join(name)).expect("a file taken away");
        let kind = if random.one_in(2) { "save" } else { "merge" };
        let content = &after.0[name];
        let torn = &content[..random.below(content.len() as u64 + 1) as usize];
        fs::write(folder.join(format!("{kind}.unfinished.{}", &name[name.len() - 3..])), torn)
            .expect("a torn file");
    }
}

/// What a drop makes durable before it moves the epoch: the second word.
fn epoch_between(before: &[u8], after: &[u8]) -> Vec<u8> {
    match before.len() < 16 || after.len() < 16 || before[8..] == after[8..] {
        true => before.to_vec(),
        false => [&before[..8], &after[8..]].concat(),
    }
}

/// The contents of the epoch file that a power loss may leave.
#[derive(Default)]
pub struct Epochs(Vec<Vec<u8>>);

impl Epochs {
    /// A step has been carried out.
    pub fn note(&mut self, before: &Snapshot, after: &Snapshot) {
        if self.0.is_empty() {
            self.0.push(Vec::new()); // Made, and never synced.
        }
        let (before, after) = (before.epoch(), after.epoch());
        let dropped = |epoch: &[u8]| epoch.get(8..16).map(<[u8]>::to_vec).unwrap_or_else(|| vec![0; 8]);
        if dropped(&before) != dropped(&after) {
            let value = before.get(..8).map(<[u8]>::to_vec).unwrap_or_else(|| vec![0; 8]);
            self.0 = vec![[value, dropped(&after)].concat()];
        }
        self.0.push(after);
    }

    /// The power goes.
    pub fn lose(&self, folder: &Path, random: &mut Random) {
        let path = folder.join(EPOCH);
        if self.0.is_empty() || !path.exists() {
            return;
        }
        let kept = &self.0[random.below(self.0.len() as u64) as usize];
        fs::write(path, kept).expect("the epoch as it was");
    }
}
