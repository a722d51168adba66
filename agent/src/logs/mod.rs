//! What engines have said: kept in files, in bounds, and read again.
