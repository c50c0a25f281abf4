//! The .hrl change log of public format [MS-HRL].
#![forbid(unsafe_code)]
