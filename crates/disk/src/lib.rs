//! Block devices and what is built over them.
