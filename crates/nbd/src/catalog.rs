//! The exports of a server by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::codec::option::text;
use crate::error::{NbdError, Result};
use crate::export::Export;

/// Exports by name; the empty name stands for the only export where there is but one.
#[derive(Default)]
pub(crate) struct Catalog {
    exports: RwLock<BTreeMap<String, Arc<dyn Export>>>,
}

impl Catalog {
    pub(crate) fn add(&self, name: &str, export: Arc<dyn Export>) -> Result<()> {
        if text(name.as_bytes()).is_none() {
            return Err(NbdError::ExportNameInvalid(name.chars().take(64).collect()));
        }
        let mut exports = self.exports.write();
        if exports.contains_key(name) {
            return Err(NbdError::ExportExists(name.to_owned()));
        }
        exports.insert(name.to_owned(), export);
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let removed = self.exports.write().remove(name);
        removed.map(|_| ()).ok_or_else(|| NbdError::ExportNotFound(name.to_owned()))
    }

    /// The export and its canonical name.
    pub(crate) fn find(&self, name: &str) -> Option<(String, Arc<dyn Export>)> {
        let exports = self.exports.read();
        let entry = exports.get_key_value(name);
        let only = || if name.is_empty() && exports.len() == 1 { exports.first_key_value() } else { None };
        entry.or_else(only).map(|(name, export)| (name.clone(), export.clone()))
    }

    /// Whether `export` is still the one of this name.
    pub(crate) fn has(&self, name: &str, export: &Arc<dyn Export>) -> bool {
        self.exports.read().get(name).is_some_and(|found| Arc::ptr_eq(found, export))
    }

    pub(crate) fn list(&self) -> Vec<(String, Arc<dyn Export>)> {
        let exports = self.exports.read();
        exports.iter().map(|(name, export)| (name.clone(), export.clone())).collect()
    }
}
