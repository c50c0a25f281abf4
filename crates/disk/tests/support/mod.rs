//! What tests on real disks stand on: loop devices, a file system too small for its files, and skips nobody overlooks.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says that a test cannot run here, on standard error and in the file named by SECONDSITE_SKIP_LOG.
pub fn skip(test: &str, reason: &str) {
    // A log that cannot be written leaves the line on standard error.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
    let Some(path) = std::env::var_os("SECONDSITE_SKIP_LOG") else { return };
    if let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(log, "{test}\t{reason}");
    }
}

/// Runs a program; its output when it succeeded, else why not.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// A loop device over a file, detached at the end.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    /// A device with sectors of 512 or 4096 bytes.
    pub fn over(file: &Path, sector_size_bytes: u32) -> Result<Self, String> {
        let sector = sector_size_bytes.to_string();
        let file = file.to_str().ok_or("a path that is no text")?;
        let name = run("losetup", &["--find", "--show", "--sector-size", &sector, file])?;
        Ok(Self(PathBuf::from(name)))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.0.to_string_lossy()]);
    }
}

/// A file system of its own with room for `size_bytes`, gone at the end.
pub struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    /// One in memory.
    pub fn new(size_bytes: u64) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (option, path) = (format!("size={size_bytes}"), folder.path().to_string_lossy().into_owned());
        run("mount", &["-t", "tmpfs", "-o", &option, "none", &path])?;
        Ok(Self(folder))
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", &self.0.path().to_string_lossy()]);
    }
}
