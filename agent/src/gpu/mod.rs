//! The GPUs of the machine, as data: none and lost ones among them.
