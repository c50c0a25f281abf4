//! A sealed log as TypeScript sees it.

use std::path::Path;

use napi_derive::napi;
use secondsite_hrl::{SealedLog, index_path};

use crate::number::{ms, size};

/// A sealed log: two files, `path` and its index.
#[napi(object)]
pub struct NativeSealedLog {
    pub path: String,
    pub index_path: String,
    /// UniqueId as GUID text.
    pub id: String,
    /// PreviousUniqueId as GUID text; zeros for the first.
    pub previous_id: String,
    pub first_sequence: f64,
    /// One past the sequence number of the last entry.
    pub next_sequence: f64,
    pub entry_count: f64,
    pub data_bytes: f64,
    pub log_size_bytes: f64,
    pub index_size_bytes: f64,
    /// Unix milliseconds of the cut that ended the log.
    pub cut_time_ms: f64,
}

pub fn sealed_log_of(path: &Path, sealed: &SealedLog, cut_time_ns: u64) -> NativeSealedLog {
    NativeSealedLog {
        path: path.to_string_lossy().into_owned(),
        index_path: index_path(path).to_string_lossy().into_owned(),
        id: sealed.id.to_string(),
        previous_id: sealed.previous_id.to_string(),
        first_sequence: size(sealed.first_sequence),
        next_sequence: size(sealed.next_sequence),
        entry_count: size(sealed.entry_count),
        data_bytes: size(sealed.data_bytes),
        log_size_bytes: size(sealed.log_size_bytes),
        index_size_bytes: size(sealed.index_size_bytes),
        cut_time_ms: ms(cut_time_ns),
    }
}
