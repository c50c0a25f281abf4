//! Errors cross the border as data: the message is a JSON object with code, text, hint and details. (A rejected task
//! would lose a code that stands beside the message.) `packages/engine/src/native` rebuilds them; nothing else reads
//! that JSON.

use napi::Error;
use secondsite_disk::DiskError;
use secondsite_hrl::{HrlError, Place};
use serde_json::{Map, Value, json};

/// A stable code, as listed in `docs/errors.md`.
pub struct Code(String);

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<napi::Status> for Code {
    fn from(status: napi::Status) -> Self {
        Self(format!("NATIVE_{}", status.as_ref()))
    }
}

pub type Result<T> = std::result::Result<T, Error<Code>>;

/// An error with its place and hint.
pub fn failure(code: &str, message: &str, hint: &str, details: Map<String, Value>) -> Error<Code> {
    let body = json!({ "code": code, "message": message, "hint": hint, "details": details });
    Error::new(Code(code.to_owned()), body.to_string())
}

/// A value from TypeScript that makes no sense; TypeScript checks first, so this is the second net.
pub fn bad_argument(name: &str, reason: &str) -> Error<Code> {
    let mut details = Map::new();
    details.insert("argument".into(), name.into());
    failure("OPTION_OUT_OF_RANGE", &format!("{name}: {reason}"), "", details)
}

pub fn from_log(error: HrlError) -> Error<Code> {
    failure(error.code(), &error.to_string(), error.hint(), place_of(error.place()))
}

fn place_of(place: &Place) -> Map<String, Value> {
    let mut details = Map::new();
    details.insert("path".into(), place.path.to_string_lossy().into());
    details.insert("offset".into(), place.offset.into());
    details.insert("reason".into(), place.reason.clone().into());
    details
}

/// The same error for a task, which knows only the stock status.
pub fn task_error(error: Error<Code>) -> Error {
    Error::from_reason(error.reason.clone())
}

pub fn from_disk(error: DiskError) -> Error<Code> {
    let code = error.code();
    let text = error.to_string();
    let Some(place) = error.place() else {
        return match error {
            DiskError::Log(error) => from_log(error),
            DiskError::OverlayDamaged(place) => {
                let hint = "what was written to the overlay is lost; fail over to the point again";
                failure(code, &text, hint, place_of(&place))
            }
            DiskError::UndoDamaged(place) => {
                let hint = "points up to this one are lost; newer ones can be used";
                failure(code, &text, hint, place_of(&place))
            }
            _ => failure(code, &text, "", Map::new()),
        };
    };
    let mut details = Map::new();
    details.insert("path".into(), place.path.to_string_lossy().into());
    if place.length_bytes > 0 {
        details.insert("offset".into(), place.offset.into());
        details.insert("lengthBytes".into(), place.length_bytes.into());
    }
    failure(code, &text, "", details)
}
