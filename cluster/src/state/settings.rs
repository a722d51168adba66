//! The settings of the fleet (seed 004): what each may be, and what it is when nobody has set it.

use prost::Message;

use super::step::{Damaged, Step, Stop, check};
use super::view::View;
use crate::rows::{self, Settings};

/// The settings after a change of some of them.
///
/// # Errors
/// When they can not be read.
pub fn changed(settings: &Settings, changes: &Settings, reset: &[String]) -> Result<Settings, Damaged> {
    let mut settings = settings.clone();
    let merged = settings.merge(changes.encode_to_vec().as_slice());
    merged.map_err(|error| Damaged { table: 11, why: error.to_string() })?;
    for name in reset {
        if name == "default_max_failed_restarts" {
            settings.default_max_failed_restarts = None;
        }
    }
    Ok(settings)
}

pub(super) fn update(step: &mut Step<'_>, command: &rows::UpdateSettings) -> Result<rows::SettingsAnswer, Stop> {
    let (settings, mod_index) =
        step.get::<Settings>(&[])?.map_or_else(Default::default, |stored| (stored.row, stored.mod_index));
    check(command.precondition.as_ref(), mod_index)?;
    let settings = changed(&settings, &command.changes.clone().unwrap_or_default(), &command.reset)?;
    step.put(Vec::new(), &settings)?;
    Ok(rows::SettingsAnswer { mod_index: step.index, settings: Some(settings) })
}

impl View {
    /// The settings that were set, and the index of the last change; 0 if there was none.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn settings(&self) -> Result<(Settings, u64), Damaged> {
        Ok(self.get::<Settings>(&[])?.map_or_else(Default::default, |stored| (stored.row, stored.mod_index)))
    }
}
