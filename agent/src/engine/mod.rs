//! Inference engines: their command lines, what they say of themselves, and how they sleep.
