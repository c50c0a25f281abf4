//! The handshake as a state machine without I/O: an option goes in, replies and the next step come out.

use std::sync::Arc;

use crate::catalog::Catalog;
use crate::codec::constants::{
    EXPORT_NAME_ZEROES, PAYLOAD_BYTES_MAX, handshake_flag, info, opt, rep, transmission_flag as flag,
};
use crate::codec::option::{InfoRequest, put_reply, text};
use crate::codec::request::BLOCK_BYTES_MIN;
use crate::export::Export;
use crate::meta::{self, Context};

/// What follows an option.
pub(crate) enum Step {
    /// The next option.
    Next,
    /// The replies are sent, then TLS begins.
    StartTls,
    /// The replies are sent, then the transmission begins.
    Enter(Entered),
    /// The replies are sent, then the connection is closed.
    End,
}

/// What a client has chosen.
pub(crate) struct Entered {
    pub(crate) name: String,
    pub(crate) export: Arc<dyn Export>,
    pub(crate) is_structured: bool,
    pub(crate) contexts: Vec<Context>,
}

/// What TLS is to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    None,
    Offered,
    Required,
}

/// The state of one handshake.
pub(crate) struct Handshake<'a> {
    catalog: &'a Catalog,
    tls: TlsMode,
    request_bytes_max: u32,
    is_fixed: bool,
    has_zeroes: bool,
    is_secure: bool,
    is_structured: bool,
    chosen: Option<(String, Vec<Context>)>,
}

impl<'a> Handshake<'a> {
    /// The flags that the server sends first.
    pub(crate) const FLAGS: u16 = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;

    /// `None` when the client sets a flag that was not offered.
    pub(crate) fn new(
        catalog: &'a Catalog,
        tls: TlsMode,
        request_bytes_max: u32,
        client_flags: u32,
    ) -> Option<Self> {
        let has = |flag: u16| client_flags & u32::from(flag) != 0;
        (client_flags & !u32::from(Self::FLAGS) == 0).then_some(Self {
            catalog,
            tls,
            request_bytes_max: request_bytes_max.min(PAYLOAD_BYTES_MAX),
            is_fixed: has(handshake_flag::FIXED_NEWSTYLE),
            has_zeroes: !has(handshake_flag::NO_ZEROES),
            is_secure: false,
            is_structured: false,
            chosen: None,
        })
    }

    /// Answers one option; its replies are appended to `out`.
    pub(crate) fn on_option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        if !self.is_fixed && option != opt::EXPORT_NAME {
            return Step::End;
        }
        let is_open = self.tls != TlsMode::Required || self.is_secure;
        match option {
            opt::ABORT => {
                put_reply(out, option, rep::ACK, &[]);
                Step::End
            }
            opt::STARTTLS => self.start_tls(data, out),
            opt::EXPORT_NAME if !is_open => Step::End,
            _ if !is_open => refuse(out, option, rep::ERR_TLS_REQD, "TLS is required here"),
            opt::EXPORT_NAME => self.export_name(data, out),
            opt::LIST => self.list(data, out),
            opt::INFO | opt::GO => self.info(option, data, out),
            opt::STRUCTURED_REPLY => self.structured_reply(data, out),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta_context(option, data, out),
            _ => refuse(out, option, rep::ERR_UNSUP, "unknown option"),
        }
    }

    fn start_tls(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let option = opt::STARTTLS;
        if !data.is_empty() || self.is_secure {
            return refuse(out, option, rep::ERR_INVALID, "TLS is on already, or the option has data");
        }
        if self.tls == TlsMode::None {
            return refuse(out, option, rep::ERR_POLICY, "this server has no certificate");
        }
        put_reply(out, option, rep::ACK, &[]);
        // Whatever was agreed on in the clear may have been said by somebody else.
        (self.is_secure, self.is_structured, self.chosen) = (true, false, None);
        Step::StartTls
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step {
        if !data.is_empty() {
            return refuse(out, opt::STRUCTURED_REPLY, rep::ERR_INVALID, "the option has data");
        }
        self.is_structured = true;
        put_reply(out, opt::STRUCTURED_REPLY, rep::ACK, &[]);
        Step::Next
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        if !data.is_empty() {
            return refuse(out, opt::LIST, rep::ERR_INVALID, "the option has data");
        }
        for (name, export) in self.catalog.list() {
            let (length, line) = ((name.len() as u32).to_be_bytes(), description(&*export));
            put_reply(out, opt::LIST, rep::SERVER, &[&length, name.as_bytes(), line.as_bytes()]);
        }
        put_reply(out, opt::LIST, rep::ACK, &[]);
        Step::Next
    }

    fn export_name(&mut self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let found = text(data).and_then(|name| self.catalog.find(name));
        // This option has no way to say no but to hang up.
        let Some((name, export)) = found else { return Step::End };
        out.extend_from_slice(&export.device().size_bytes().to_be_bytes());
        out.extend_from_slice(&self.transmission_flags(&*export).to_be_bytes());
        if self.has_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        self.enter(name, export)
    }

    fn info(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        let Some(request) = InfoRequest::decode(data) else {
            return refuse(out, option, rep::ERR_INVALID, "the option cannot be read");
        };
        let Some((name, export)) = self.catalog.find(request.name) else {
            return refuse(out, option, rep::ERR_UNKNOWN, "no export of this name");
        };
        self.put_info(option, &request, &name, &*export, out);
        put_reply(out, option, rep::ACK, &[]);
        if option == opt::GO { self.enter(name, export) } else { Step::Next }
    }

    fn put_info(
        &self,
        option: u32,
        request: &InfoRequest<'_>,
        name: &str,
        export: &dyn Export,
        out: &mut Vec<u8>,
    ) {
        let mut put = |kind: u16, parts: [&[u8]; 3]| {
            put_reply(out, option, rep::INFO, &[&kind.to_be_bytes(), parts[0], parts[1], parts[2]]);
        };
        let size = export.device().size_bytes().to_be_bytes();
        put(info::EXPORT, [&size, &self.transmission_flags(export).to_be_bytes(), &[]]);
        if request.wants(info::NAME) || request.name != name {
            put(info::NAME, [name.as_bytes(), &[], &[]]);
        }
        let line = description(export);
        if request.wants(info::DESCRIPTION) && !line.is_empty() {
            put(info::DESCRIPTION, [line.as_bytes(), &[], &[]]);
        }
        // Sent unasked as well, as the unit of 512 bytes is no default.
        let preferred_bytes = export.device().sector_size_bytes().clamp(4096, 65_536);
        let sizes = [BLOCK_BYTES_MIN, preferred_bytes, self.request_bytes_max].map(u32::to_be_bytes);
        put(info::BLOCK_SIZE, [&sizes[0], &sizes[1], &sizes[2]]);
    }

    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        let is_setting = option == opt::SET_META_CONTEXT;
        if is_setting {
            self.chosen = None;
        }
        if !self.is_structured {
            return refuse(out, option, rep::ERR_INVALID, "structured replies come first");
        }
        match meta::answer(self.catalog, option, data, out) {
            Ok(chosen) if is_setting => self.chosen = Some(chosen),
            Ok(_) => {}
            Err((kind, message)) => return refuse(out, option, kind, message),
        }
        Step::Next
    }

    fn enter(&mut self, name: String, export: Arc<dyn Export>) -> Step {
        let chosen = self.chosen.take().filter(|(of, _)| *of == name);
        let contexts = chosen.map(|(_, contexts)| contexts).unwrap_or_default();
        Step::Enter(Entered { name, export, is_structured: self.is_structured, contexts })
    }

    fn transmission_flags(&self, export: &dyn Export) -> u16 {
        let mut flags = flag::HAS_FLAGS | flag::SEND_CACHE;
        flags |= match export.is_read_only() {
            true => flag::READ_ONLY,
            false => {
                flag::SEND_FLUSH
                    | flag::SEND_FUA
                    | flag::SEND_TRIM
                    | flag::SEND_WRITE_ZEROES
                    | flag::SEND_FAST_ZERO
            }
        };
        flags |= if self.is_structured { flag::SEND_DF } else { 0 };
        flags | if export.can_multi_connect() { flag::CAN_MULTI_CONN } else { 0 }
    }
}

fn refuse(out: &mut Vec<u8>, option: u32, kind: u32, message: &str) -> Step {
    put_reply(out, option, kind, &[message.as_bytes()]);
    Step::Next
}

/// The line for people, cut to what the protocol can carry.
fn description(export: &dyn Export) -> String {
    let mut line = export.description();
    let end = line.floor_char_boundary(crate::codec::constants::STRING_BYTES_MAX);
    line.truncate(end);
    line
}
