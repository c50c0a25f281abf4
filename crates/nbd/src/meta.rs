//! Metadata contexts: `base:allocation` of the protocol, and `secondsite:dirty`, ours.

use crate::catalog::Catalog;
use crate::codec::constants::{opt, rep};
use crate::codec::option::{MetaRequest, put_reply};
use crate::export::Export;

/// Something that BLOCK_STATUS can tell about ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    /// Holes, and what reads as zeros.
    Allocation,
    /// What was written since the last acknowledged cut.
    Dirty,
}

impl Context {
    const ALL: [Self; 2] = [Self::Allocation, Self::Dirty];

    fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Dirty => "secondsite:dirty",
        }
    }

    /// The same for every connection; clients must not rely on it.
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Dirty => 2,
        }
    }

    fn is_offered(self, export: &dyn Export) -> bool {
        self == Self::Allocation || export.has_dirty()
    }

    /// A query names a context, or in a list all of its namespace ("base:").
    fn matches(self, query: &str, is_list: bool) -> bool {
        let name = self.name();
        query == name || (is_list && query.ends_with(':') && name.starts_with(query))
    }
}

/// Answers LIST_META_CONTEXT or SET_META_CONTEXT: the export's canonical name and the contexts, or the error.
pub(crate) fn answer(
    catalog: &Catalog,
    option: u32,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<(String, Vec<Context>), (u32, &'static str)> {
    let request = MetaRequest::decode(data).ok_or((rep::ERR_INVALID, "the option cannot be read"))?;
    let (name, export) = catalog.find(request.name).ok_or((rep::ERR_UNKNOWN, "no export of this name"))?;
    let is_list = option == opt::LIST_META_CONTEXT;
    let lists_all = is_list && request.query_count == 0;
    let is_asked = |context: &Context| request.queries().any(|query| context.matches(query, is_list));
    let offered = Context::ALL.into_iter().filter(|context| context.is_offered(&*export));
    let contexts: Vec<Context> = offered.filter(|context| lists_all || is_asked(context)).collect();
    for context in &contexts {
        let id = if is_list { 0 } else { context.id() };
        put_reply(out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), context.name().as_bytes()]);
    }
    put_reply(out, option, rep::ACK, &[]);
    Ok((name, contexts))
}
