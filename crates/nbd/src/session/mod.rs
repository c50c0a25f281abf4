//! One connection from its first byte to its last.
//!
//! | file | what |
//! |---|---|
//! | `intake`, `spin` | receives, gives whole requests |
//! | `lanes` | where a batch is carried out |
//! | `executor`, `readers`, `flusher`, `status`, `out` | carries it out, sends the replies |

mod executor;
mod flusher;
mod intake;
mod lanes;
mod out;
mod readers;
mod spin;
mod status;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::catalog::Catalog;
use crate::codec::constants::{INIT_MAGIC, OPTION_MAGIC};
use crate::codec::option::{OPTION_HEADER_BYTES, OptionHeader};
use crate::counters::LiveCounters;
use crate::handshake::{Entered, Handshake, Step, TlsMode};
use crate::options::Limits;
use crate::tls::Tls;
use crate::wire::Wire;

use executor::Executor;
use intake::{Batch, Ending};
use lanes::Lanes;
use spin::Spin;

/// What all connections of a server share.
pub(crate) struct Common {
    pub(crate) catalog: Catalog,
    pub(crate) limits: Limits,
    pub(crate) tls: Option<Tls>,
    pub(crate) counters: Arc<LiveCounters>,
    pub(crate) spin_us: u32,
    pub(crate) core_count: u64,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As the protocol has it, or by hanging up.
    Regular,
    /// For a breach of the protocol or of a limit.
    Breach,
}

/// Serves one client. `enter` learns the chosen export and may refuse it; `is_stopping` is looked at after each batch.
///
/// # Errors
/// Those of the socket: the client is gone, too slow, or was cut off.
pub(crate) fn serve(
    common: &Common,
    wire: &mut dyn Wire,
    enter: impl FnOnce(&Entered) -> bool,
    is_stopping: &AtomicBool,
) -> io::Result<End> {
    let entered = match negotiate(common, wire)? {
        Ok(entered) => entered,
        Err(end) => return Ok(end),
    };
    if !enter(&entered) {
        return Ok(End::Regular);
    }
    wire.end_deadline()?;
    transmit(common, wire, entered, is_stopping)
}

/// The handshake: what the client has chosen, or how the connection ends instead.
fn negotiate(common: &Common, wire: &mut dyn Wire) -> io::Result<Result<Entered, End>> {
    let mut out = greeting();
    wire.send_all(&out)?;
    let mut flags = [0; 4];
    if wire.receive_exact(&mut flags)?.is_none() {
        return Ok(Err(End::Regular));
    }
    let (tls, max) = (common.tls.as_ref(), common.limits.request_bytes_max);
    let mode = tls.map_or(TlsMode::None, Tls::mode);
    let Some(mut handshake) = Handshake::new(&common.catalog, mode, max, u32::from_be_bytes(flags)) else {
        return Ok(Err(End::Breach));
    };
    let mut data = Vec::new();
    for _ in 0..common.limits.option_count_max {
        let option = match receive_option(common, wire, &mut data)? {
            Ok(option) => option,
            Err(end) => return Ok(Err(end)),
        };
        out.clear();
        let step = handshake.on_option(option, &data, &mut out);
        wire.send_all(&out)?;
        match step {
            Step::Next => {}
            Step::StartTls => wire.start_tls(tls.ok_or(io::ErrorKind::Unsupported)?)?,
            Step::Enter(entered) => return Ok(Ok(entered)),
            Step::End => return Ok(Err(End::Regular)),
        }
    }
    Ok(Err(End::Breach))
}

fn greeting() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(18);
    bytes.extend_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&Handshake::FLAGS.to_be_bytes());
    bytes
}

/// The next option, its data in `data`; or how the connection ends instead.
fn receive_option(common: &Common, wire: &mut dyn Wire, data: &mut Vec<u8>) -> io::Result<Result<u32, End>> {
    let mut head = [0; OPTION_HEADER_BYTES];
    if wire.receive_exact(&mut head)?.is_none() {
        return Ok(Err(End::Regular));
    }
    let header = OptionHeader::decode(&head).filter(|head| head.data_bytes <= common.limits.option_bytes_max);
    let Some(header) = header else { return Ok(Err(End::Breach)) };
    data.clear();
    data.resize(header.data_bytes as usize, 0);
    let received = wire.receive_exact(data)?;
    Ok(received.map(|()| header.option).ok_or(End::Regular))
}

fn transmit(
    common: &Common,
    wire: &mut dyn Wire,
    entered: Entered,
    is_stopping: &AtomicBool,
) -> io::Result<End> {
    let max = common.limits.request_bytes_max;
    let executor = Executor::new(entered, max, common.counters.clone(), wire.second_sender());
    let mut lanes = Lanes::new(executor, max);
    let (mut batch, mut spin) = (Batch::new(max), Spin::new(common.spin_us));
    while batch.ending.is_none() && !is_stopping.load(Ordering::Acquire) {
        if common.counters.connection_count.load(Ordering::Relaxed) > common.core_count {
            spin.give_up();
        }
        batch.collect(wire, &mut spin)?;
        spin.note_batch(batch.requests.len());
        lanes.run(&mut batch, wire)?;
    }
    lanes.wait()?;
    wire.finish();
    Ok(if batch.ending == Some(Ending::Breach) { End::Breach } else { End::Regular })
}
