//! `muster config`.

use std::path::Path;

use crate::cli::Output;
use crate::config::{Config, check_file};
use crate::exit::Failure;
use crate::output;

/// Prints every key.
pub fn show(config: &Config, format: Output) -> Result<(), Failure> {
    output::print(format, &config.keys(), ["KEY", "VALUE", "ORIGIN", "SCOPE"], |keys| {
        let row = |key: &crate::config::Key| {
            [key.key.to_owned(), key.value.clone(), key.origin.clone(), key.scope.to_owned()]
        };
        keys.iter().map(row).collect()
    })
}

/// Checks a file.
pub fn check(file: &Path) -> Result<(), Failure> {
    check_file(file)?;
    eprintln!("{} is a valid configuration", file.display());
    Ok(())
}
