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
    raw(format!("{text}\n").as_bytes())
}

/// Prints bytes as they are. A reader that has seen enough, as `head` has, is no failure.
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("standard output does not take the answer: {error}")))
        }
        _ => Ok(()),
    }
}
