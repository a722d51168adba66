//! What goes to standard output: a table or one JSON document.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::Output;
use crate::exit::Failure;

/// Prints `document` as JSON, or the rows made from it as a table.
pub fn print<T: Serialize, const COLUMNS: usize>(
    output: Output,
    document: &T,
    header: [&str; COLUMNS],
    rows: impl FnOnce(&T) -> Vec<[String; COLUMNS]>,
) -> Result<(), Failure> {
    taken_or_enough(put(text(output, document, header, rows)?.as_bytes()))
}

/// Like [`print`], for what is shown only once: whoever did not get all of it has to know.
pub fn print_once<T: Serialize, const COLUMNS: usize>(
    output: Output,
    document: &T,
    header: [&str; COLUMNS],
    rows: impl FnOnce(&T) -> Vec<[String; COLUMNS]>,
) -> Result<(), Failure> {
    put(text(output, document, header, rows)?.as_bytes()).map_err(not_taken)
}

fn text<T: Serialize, const COLUMNS: usize>(
    output: Output,
    document: &T,
    header: [&str; COLUMNS],
    rows: impl FnOnce(&T) -> Vec<[String; COLUMNS]>,
) -> Result<String, Failure> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(document)
            .map_err(|error| Failure::other(format!("the answer has no JSON form: {error}")))?,
        Output::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(header);
            table.add_rows(rows(document));
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            table.trim_fmt()
        }
    };
    Ok(format!("{text}\n"))
}

/// Prints bytes as they are. A reader that has seen enough, as `head` has, is no failure.
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    taken_or_enough(put(bytes))
}

fn put(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush())
}

fn taken_or_enough(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(not_taken(error)),
        _ => Ok(()),
    }
}

fn not_taken(error: io::Error) -> Failure {
    Failure::other(format!("standard output does not take the answer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_has_enough_is_no_failure() {
        assert!(taken_or_enough(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(taken_or_enough(Err(io::ErrorKind::StorageFull.into())).is_err());
        assert!(taken_or_enough(Ok(())).is_ok());
    }
}
