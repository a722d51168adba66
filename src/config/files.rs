//! What the configuration says of model files: where they lie, and where pulls may go.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use muster_agent::files::{FilesConfig, Limits, PullPolicy};
use muster_agent::runtime::process::UserName;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Values;

/// The variable by which the hub's own tools find their files.
pub const HF_HOME: &str = "HF_HOME";

/// Where these tools keep them below a directory for caches.
const BELOW_CACHE: &str = "huggingface";

/// Directories of the machine, separated by colons as in `PATH`, or a list of them in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directories(Vec<PathBuf>);

impl Directories {
    /// The first that is no absolute path.
    pub fn relative(&self) -> Option<&Path> {
        self.0.iter().map(PathBuf::as_path).find(|path| !path.is_absolute())
    }
}

impl FromStr for Directories {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.split(':').map(str::trim).filter(|path| !path.is_empty()).map(PathBuf::from).collect()))
    }
}

impl fmt::Display for Directories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(":"))
    }
}

impl Serialize for Directories {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Directories {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "directories separated by colons, or a list of them")]
        enum Written {
            Text(String),
            List(Vec<PathBuf>),
        }
        match Written::deserialize(deserializer)? {
            Written::Text(text) => text.parse().map_err(D::Error::custom),
            Written::List(paths) => Ok(Self(paths)),
        }
    }
}

/// What an operator expects where nothing is configured: the place that the tools of the hub use for whoever runs engines here.
/// Root has none of its own: a service that runs as root keeps its files with its data.
pub fn default_hf_home(values: &Values) -> PathBuf {
    let user = values.engine_user();
    let engines = user.as_ref().and_then(UserName::home).map(|home| home.join(".cache"));
    let is_root = rustix::process::geteuid().is_root();
    let own =
        |name| std::env::var_os(name).map(|value: OsString| PathBuf::from(value)).filter(|path| path.is_absolute());
    let cache = || own("XDG_CACHE_HOME").or_else(|| own("HOME").map(|home| home.join(".cache"))).filter(|_| !is_root);
    engines.or_else(cache).unwrap_or_else(|| values.data_dir.clone()).join(BELOW_CACHE)
}

impl Values {
    /// Who runs engines, if it is not whoever runs this node.
    pub fn engine_user(&self) -> Option<UserName> {
        let user = Some(self.engine_user.as_str()).filter(|user| !user.is_empty());
        user.map(|user| user.parse().map_or_else(|_| UserName::Name(user.to_owned()), UserName::Uid))
    }

    /// Where model files lie, and what is accepted.
    pub fn files(&self) -> FilesConfig {
        FilesConfig {
            hf_home: self.hf_home.clone(),
            models: self.data_dir.join("models"),
            model_directories: self.model_directories.0.clone(),
            packages: self.data_dir.join("packages"),
            pulls: PullPolicy { loopback: self.pull_loopback, private: self.pull_private },
            limits: Limits { keep_free: self.keep_free, ..Limits::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::defaults;

    #[test]
    fn directories_are_written_like_a_path() {
        let read = |text: &str| text.parse::<Directories>().expect("directories");
        assert_eq!(read("/a:/b c: /d ").0, [Path::new("/a"), Path::new("/b c"), Path::new("/d")]);
        assert_eq!(read("").to_string(), "");
        assert_eq!(read("/a::/b").to_string(), "/a:/b");
        assert_eq!(read("/a:b").relative(), Some(Path::new("b")));
        assert_eq!(read("/a:/b").relative(), None);
    }

    #[test]
    fn what_is_kept_lies_below_the_data_directory() {
        let values = Values { data_dir: PathBuf::from("/data"), hf_home: PathBuf::from("/hf"), ..defaults() };
        let files = values.files();
        assert_eq!((files.models, files.packages), (PathBuf::from("/data/models"), PathBuf::from("/data/packages")));
        assert_eq!((files.hf_home, files.pulls), (PathBuf::from("/hf"), PullPolicy::default()));
        assert_eq!(files.limits, Limits::default());
    }

    #[test]
    fn the_hub_is_looked_for_where_its_tools_keep_it() {
        let values = Values { data_dir: PathBuf::from("/data"), ..defaults() };
        let home = default_hf_home(&values);
        assert!(home.is_absolute() && home.ends_with("huggingface"), "{}", home.display());
        if rustix::process::geteuid().is_root() {
            assert_eq!(home, Path::new("/data/huggingface"));
            let of_engines = default_hf_home(&Values { engine_user: "0".to_owned(), ..values });
            assert!(of_engines.ends_with(".cache/huggingface"), "{}", of_engines.display());
        }
    }
}
