//! Rules by which real files fail, for tests: the table of [`secondsite_hrl::faults::rules`], shared by all threads.

use std::path::Path;

use napi_derive::napi;
use rustix::io::Errno;
use secondsite_hrl::faults::rules::{self, FaultRule, FileOperation, RULES_MAX};

use crate::error::{Result, bad_argument};
use crate::number::{offset, size};

/// A rule, as `packages/engine/src/testing` gives it.
#[napi(object)]
pub struct NativeFaultRule {
    /// A file, or a folder with all below it.
    pub path: String,
    /// Only files whose path ends so.
    pub suffix: String,
    /// `open`, `read`, `write`, `sync` or `truncate`.
    pub operation: String,
    /// `EIO` or `ENOSPC`.
    pub error: String,
    /// First byte concerned.
    pub offset: f64,
    /// Bytes concerned from there; 0 for all.
    pub length_bytes: f64,
    pub after_calls: f64,
    pub after_bytes: f64,
    /// Operations to fail; 0 for all.
    pub times: f64,
}

/// Where an operation ends by a rule.
#[napi(object)]
pub struct NativeFault {
    /// Bytes that are still carried out.
    pub permitted_bytes: f64,
    /// `EIO` or `ENOSPC`.
    pub error: String,
}

/// Puts a rule into force and returns its number.
#[napi(catch_unwind)]
pub fn arm_fault(rule: NativeFaultRule) -> Result<u32> {
    let number = rules::arm(rule_of(&rule)?);
    number.ok_or_else(|| bad_argument("rules", &format!("{RULES_MAX} are in force already")))
}

/// Takes a rule away; returns how often it struck.
#[napi(catch_unwind)]
pub fn disarm_fault(number: u32) -> f64 {
    size(rules::disarm(number))
}

/// How often a rule has struck.
#[napi(catch_unwind)]
pub fn fault_strikes(number: u32) -> f64 {
    size(rules::strikes(number))
}

/// Asks the rules about an operation of the engine's own; none when it may be carried out.
#[napi(catch_unwind)]
pub fn fault_of(path: String, operation: String, at: f64, length_bytes: f64) -> Result<Option<NativeFault>> {
    let length_bytes = offset("lengthBytes", length_bytes)?;
    let answer =
        rules::permitted(Path::new(&path), operation_of(&operation)?, offset("offset", at)?, length_bytes);
    Ok(answer.err().map(|stopped| NativeFault {
        permitted_bytes: size(stopped.permitted_bytes.min(length_bytes)),
        error: if stopped.error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) {
            "ENOSPC"
        } else {
            "EIO"
        }
        .to_owned(),
    }))
}

fn rule_of(rule: &NativeFaultRule) -> Result<FaultRule> {
    let errno = match rule.error.as_str() {
        "EIO" => Errno::IO.raw_os_error(),
        "ENOSPC" => Errno::NOSPC.raw_os_error(),
        other => return Err(bad_argument("error", other)),
    };
    let first = offset("offset", rule.offset)?;
    let end = match offset("lengthBytes", rule.length_bytes)? {
        0 => u64::MAX,
        length => first.saturating_add(length),
    };
    let made = FaultRule::new(&rule.path, operation_of(&rule.operation)?, errno)
        .suffix(&rule.suffix)
        .inside(first..end)
        .after_calls(offset("afterCalls", rule.after_calls)?)
        .after_bytes(offset("afterBytes", rule.after_bytes)?);
    Ok(match offset("times", rule.times)? {
        0 => made,
        times => made.times(times),
    })
}

fn operation_of(name: &str) -> Result<FileOperation> {
    FileOperation::named(name).ok_or_else(|| bad_argument("operation", name))
}
