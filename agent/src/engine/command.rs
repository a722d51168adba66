//! What an engine is started with.

use std::path::Path;

use muster_cluster::rows::DeploymentSpec;
use muster_cluster::sealing::SecretText;
use serde_json::{Map, Value};

use crate::runtime::Endpoint;

/// What a unit's engine shall do.
#[derive(Debug)]
pub struct Order<'a> {
    /// What the deployment runs.
    pub spec: &'a DeploymentSpec,
    /// What requests call the model ([`served_name`]).
    pub served_name: &'a str,
    /// Where to listen, as the engine sees it.
    pub listen: &'a Endpoint,
    /// Whether it shall be able to sleep.
    pub warm: bool,
    /// What its owner wants in its environment, as it was written down.
    pub environment: Vec<(String, SecretText)>,
    /// A directory for what it compiles, as the engine sees it.
    pub cache: Option<&'a Path>,
    /// The memory of its share of all its GPUs, in bytes. Only the simulator has to be told.
    pub memory: Option<u64>,
}

/// The command line and the environment of an engine.
#[derive(Debug)]
pub struct Command {
    /// The arguments, without the program.
    pub arguments: Vec<String>,
    /// Added to the environment. The values are secret, whatever they are.
    pub environment: Vec<(String, SecretText)>,
    /// Whether it can sleep. It can not, even if it shall, where its owner has switched that off.
    pub can_sleep: bool,
}

/// Why an order makes no command line. It is the specification's fault, and trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// They can not be read.
    #[error("engine_args is not a JSON object")]
    EngineArgs,
    /// A flag says that already, or must not be said.
    #[error("the environment must not set {0}: Muster decides it")]
    Reserved(&'static str),
    /// Command lines are text.
    #[error("a path that the engine has to be told is not UTF-8")]
    Path,
}

/// The engine's flags of a specification, by name.
///
/// # Errors
/// When they are no JSON object.
pub fn engine_args(spec: &DeploymentSpec) -> Result<Map<String, Value>, CommandError> {
    if spec.engine_args.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(&spec.engine_args).map_err(|_| CommandError::EngineArgs)
}

/// What requests call the model of a specification: the name that was asked for, or else the model's own.
#[must_use]
pub fn served_name(spec: &DeploymentSpec) -> String {
    let args = engine_args(spec).unwrap_or_default();
    let wanted = args.get("served_model_name").and_then(Value::as_str).map(str::trim);
    wanted.filter(|name| !name.is_empty()).unwrap_or(&spec.model_name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(engine_args: &str) -> DeploymentSpec {
        DeploymentSpec {
            model_name: "org/m".to_owned(),
            engine_args: engine_args.to_owned(),
            ..DeploymentSpec::default()
        }
    }

    #[test]
    fn a_model_goes_by_the_name_that_was_asked_for_or_its_own() {
        assert_eq!(served_name(&spec(r#"{"served_model_name": "alias"}"#)), "alias");
        for own in ["", "{}", r#"{"served_model_name": " "}"#, r#"{"served_model_name": null}"#, "[]", "{"] {
            assert_eq!(served_name(&spec(own)), "org/m", "{own}");
        }
    }

    #[test]
    fn engine_args_are_an_object_or_nothing() {
        assert_eq!(engine_args(&spec(" ")), Ok(Map::new()));
        assert_eq!(engine_args(&spec(r#"{"seed": 1}"#)).map(|args| args.len()), Ok(1));
        for wrong in ["[]", "1", "{", "null"] {
            assert_eq!(engine_args(&spec(wrong)), Err(CommandError::EngineArgs), "{wrong}");
        }
    }
}
