//! The protocol as pure functions over bytes: nothing here does I/O, blocks, or allocates by a number a client chose.
//!
//! | file | what |
//! |---|---|
//! | `constants` | the numbers of the protocol |
//! | `bytes` | big-endian fields of a buffer whose end is checked |
//! | `option` | options of the handshake and their replies |
//! | `request` | the header of a request, and whether it may be carried out |
//! | `reply` | simple replies and chunks of structured replies |

pub(crate) mod bytes;
pub(crate) mod constants;
pub(crate) mod option;
pub(crate) mod reply;
pub(crate) mod request;
