//! Devices for the bad days: one in memory, one that fails on command, one that loses what was never flushed.
//!
//! They stack like any other layer, so a test runs the real code over `FaultDevice(PowerLossDevice)` and knows what the
//! medium holds at every moment. Everything random comes from a seed.

mod command;
mod memory;
mod power_loss;

pub use command::{Fault, FaultDevice, Operation};
pub use memory::MemoryDevice;
pub use power_loss::PowerLossDevice;
