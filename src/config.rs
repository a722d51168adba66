//! The configuration of this node: flags, environment, file and defaults, in this order, with the origin of every value.

use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Metadata, Profile, Provider, Source, value};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::cli::NodeArguments;
use crate::exit::Failure;

const PREFIX: &str = "MUSTER_";
const FILE_VARIABLE: &str = "MUSTER_CONFIG";

/// Every key that a configuration file may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// Where the node keeps its data. `/var/lib/muster` as root, else `~/.local/share/muster`.
    pub data_dir: PathBuf,
    /// What the program says on standard error, as a filter of `tracing`. `info`.
    pub log: String,
}

/// The keys, for listing and for picking them out of the environment.
const KEYS: [&str; 2] = ["data_dir", "log"];

/// The effective configuration and where it came from.
#[derive(Debug)]
pub struct Config {
    pub values: Values,
    figment: Figment,
}

/// One key for `muster config show`.
#[derive(Debug, Serialize)]
pub struct Key {
    /// Its name in the file.
    pub key: &'static str,
    /// Its effective value.
    pub value: String,
    /// Flag, environment, file or default.
    pub origin: String,
    /// Whose setting it is. All of these are the node's own; what the fleet agrees on is not configured in files.
    pub scope: &'static str,
}

impl Config {
    /// Reads the configuration.
    pub fn load(arguments: &NodeArguments) -> Result<Self, Failure> {
        let mut figment = Figment::from(Named("default", Serialized::defaults(defaults())));
        let file = arguments.config.clone().or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from));
        if let Some(file) = file {
            figment = figment.merge(read_file(&file)?);
        }
        figment = figment.merge(Env::prefixed(PREFIX).only(&KEYS));
        if let Some(directory) = &arguments.data_dir {
            figment = figment.merge(Named("flag --data-dir", Serialized::default("data_dir", directory)));
        }
        if let Some(filter) = &arguments.log {
            figment = figment.merge(Named("flag --log", Serialized::default("log", filter)));
        }
        let values: Values = figment.extract().map_err(|error| Failure::other(sentence(&error)))?;
        if let Err(why) = check_values(&values) {
            let from_flag = arguments.log.is_some();
            return Err(if from_flag { Failure::usage(why) } else { Failure::other(why) });
        }
        Ok(Self { values, figment })
    }

    /// Every key with its value and origin.
    pub fn keys(&self) -> Vec<Key> {
        let value_of = |key| match self.figment.find_value(key) {
            Ok(value::Value::String(_, text)) => text,
            Ok(other) => format!("{other:?}"),
            Err(_) => String::new(),
        };
        KEYS.into_iter()
            .map(|key| {
                let origin = self.figment.find_metadata(key).map_or_else(String::new, |metadata| origin(metadata, key));
                Key { key, value: value_of(key), origin, scope: "node" }
            })
            .collect()
    }
}

/// Checks a file on its own: every key known, every value of the right type.
pub fn check_file(file: &Path) -> Result<(), Failure> {
    let figment = Figment::from(Serialized::defaults(defaults())).merge(read_file(file)?);
    let values: Values = figment.extract().map_err(|error| Failure::other(sentence(&error)))?;
    check_values(&values).map_err(Failure::other)
}

/// What a type can not say.
fn check_values(values: &Values) -> Result<(), String> {
    match EnvFilter::try_new(&values.log) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("log = {:?} is not a filter: {error}", values.log)),
    }
}

fn read_file(file: &Path) -> Result<figment::providers::Data<Toml>, Failure> {
    // figment treats a missing file as an empty one; a file that was named must be there.
    match file.try_exists() {
        Ok(true) => Ok(Toml::file_exact(file)),
        Ok(false) => Err(Failure::not_found(format!("there is no configuration file {}", file.display()))),
        Err(error) => Err(Failure::other(format!("{} can not be looked at: {error}", file.display()))),
    }
}

fn defaults() -> Values {
    Values { data_dir: default_data_dir(), log: "info".to_owned() }
}

fn default_data_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    match home {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".local/share/muster"),
        _ => PathBuf::from("/var/lib/muster"),
    }
}

fn origin(metadata: &Metadata, key: &str) -> String {
    match &metadata.source {
        Some(Source::File(file)) => format!("file {}", file.display()),
        _ if metadata.name.contains("environment") => format!("environment {PREFIX}{}", key.to_uppercase()),
        _ => metadata.name.to_string(),
    }
}

/// The first thing that is wrong, in one sentence that names the key and where it stands.
fn sentence(error: &figment::Error) -> String {
    let Some(first) = error.clone().into_iter().next() else { return "the configuration does not load".to_owned() };
    let path = first.path.join(".");
    let place = first.metadata.as_ref().map_or_else(String::new, |metadata| format!(" ({})", origin(metadata, &path)));
    let key = if path.is_empty() { String::new() } else { format!("{path}: ") };
    match &first.kind {
        Kind::UnknownField(name, _) => format!("there is no key {name}; the keys are {}{place}", KEYS.join(", ")),
        kind => format!("{key}{kind}{place}"),
    }
}

/// A provider under a name that an operator understands.
struct Named<P>(&'static str, P);

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> Result<value::Map<Profile, value::Dict>, figment::Error> {
        self.1.data()
    }
}
