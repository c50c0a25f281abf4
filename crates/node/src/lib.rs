//! N-API glue: handles, conversion, errors as data.
