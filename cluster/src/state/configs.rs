//! Saved configurations (seed 004): parameters of deployments under a name, to be used again. Nothing here looks into them.

use sha2::{Digest, Sha256};

use super::step::{Damaged, Step, Stop, Stored, check, refused};
use super::view::View;
use crate::rows::{self, Config, ConfigRef, Fleet, RefusalKind};

/// Under which key a name is claimed: a name of four-byte characters alone is longer than a key may be.
fn claim(name_key: &str) -> Vec<u8> {
    Sha256::digest(name_key.as_bytes()).to_vec()
}

pub(super) fn create(step: &mut Step<'_>, command: &rows::CreateConfig) -> Result<rows::ConfigAnswer, Stop> {
    let claim = claim(&command.name_key);
    if step.get::<ConfigRef>(&claim)?.is_some() {
        let why = format!("there is a configuration named {:?} already; names are compared without case", command.name);
        return Err(refused(RefusalKind::Conflict, why));
    }
    let mut fleet = step.only::<Fleet>()?;
    let id = fleet.next_config;
    fleet.next_config += 1;
    step.put(Vec::new(), &fleet)?;
    let config = Config {
        id,
        name: command.name.clone(),
        name_key: command.name_key.clone(),
        payload: command.payload.clone(),
        created_index: step.index,
        created_ms: step.now.0,
        created_by: step.origin.principal.clone(),
    };
    step.put(claim, &ConfigRef { id })?;
    step.put(id.to_be_bytes().to_vec(), &config)?;
    Ok(rows::ConfigAnswer { mod_index: step.index, config: Some(config) })
}

pub(super) fn delete(step: &mut Step<'_>, command: &rows::DeleteConfig) -> Result<rows::ConfigAnswer, Stop> {
    let key = command.id.to_be_bytes();
    let Some(Stored { row: config, mod_index }) = step.get::<Config>(&key)? else {
        return Err(refused(RefusalKind::NotFound, format!("there is no configuration {}", command.id)));
    };
    check(command.precondition.as_ref(), mod_index)?;
    remove(step, &config);
    Ok(rows::ConfigAnswer { mod_index, config: Some(config) })
}

pub(super) fn remove(step: &mut Step<'_>, config: &Config) {
    step.remove::<ConfigRef>(claim(&config.name_key));
    step.remove::<Config>(config.id.to_be_bytes().to_vec());
}

impl View {
    /// Every saved configuration, by number.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn configs(&self) -> Result<Vec<Stored<Config>>, Damaged> {
        self.rows(&[]).map(|row| row.map(|(_, config)| config)).collect()
    }
}
