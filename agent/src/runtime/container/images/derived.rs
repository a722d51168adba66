//! Images with further Python packages, built on top of an engine's image.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bollard::query_parameters::BuildImageOptions;
use data_encoding::HEXLOWER;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use super::super::call::{CallError, within};
use super::super::daemon::Client;
use super::{Ensured, Reference, digest, identity, inspect};
use crate::runtime::{Progress, RuntimeError};

/// What an image made here is marked with, and what it was made from.
pub(super) const DERIVED: &str = "muster.derived";
const BASE: &str = "muster.base";

/// The repository of images that are made here. No registry is asked for them: this one would be on this machine.
pub const LOCAL_REPOSITORY: &str = "localhost/muster/local";

/// How long a build may take.
const BUILD: Duration = Duration::from_secs(3600);

/// How much of an image's own tag is in the tag of what is built on it.
const BASE_TAG_LIMIT: usize = 100;

/// Where packages of this machine are while an image is built.
const PACKAGES: &str = "/opt/muster-packages";

/// A Python package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Package {
    /// One that pip finds by itself: a name, with a version if it matters.
    Named(String),
    /// A file or a directory of this machine.
    Local(PathBuf),
}

impl Package {
    /// As pip is told, with the number that keeps two local ones apart.
    fn argument(&self, number: usize) -> Result<String, String> {
        match self {
            Self::Named(name) => {
                let fits = !name.is_empty() && !name.starts_with('-') && !name.chars().any(char::is_control);
                fits.then(|| name.clone()).ok_or_else(|| format!("{name:?} is not the name of a package"))
            }
            Self::Local(path) => match path.file_name().and_then(|name| name.to_str()) {
                Some(name) if !name.chars().any(char::is_control) => Ok(format!("{PACKAGES}/{number}/{name}")),
                _ => Err(format!("{} is not a package", path.display())),
            },
        }
    }
}

/// The name of the image with these packages: the same ones have the same name in whatever order they are given.
///
/// # Errors
/// In words, when `repository` is not a name.
pub fn derived_name(repository: &str, base: &Reference, packages: &[Package]) -> Result<Reference, String> {
    let mut sorted: Vec<String> = packages
        .iter()
        .map(|package| match package {
            Package::Named(name) => name.clone(),
            Package::Local(path) => path.display().to_string(),
        })
        .collect();
    sorted.sort();
    sorted.dedup();
    let mut hash = Sha256::new();
    hash.update(base.to_string());
    for package in sorted {
        hash.update([0]);
        hash.update(package);
    }
    let hash = HEXLOWER.encode(&hash.finalize()[..8]);
    let tag: String = base.tag().unwrap_or("digest").chars().take(BASE_TAG_LIMIT).collect();
    Reference::parse(&format!("{repository}:{tag}-{hash}"))
}

/// Builds the image with these packages on a base that the daemon has. One that was built on the same base is used again.
pub(in super::super) async fn build(
    client: &Client,
    name: &Reference,
    base: &Reference,
    packages: &[Package],
    progress: &watch::Sender<Progress>,
) -> Result<Ensured, RuntimeError> {
    let failed = |error: CallError| client.failed(error);
    let base_image = inspect(client, &base.to_string()).await.map_err(failed)?;
    let Some(base_id) = base_image.and_then(|image| image.id).map(|id| identity(&id)) else {
        return Err(RuntimeError::Image { image: base.to_string(), why: "it is not on this node".to_owned() });
    };
    let made = |image: bollard::models::ImageInspect| Ensured {
        id: image.id.as_deref().map(identity).unwrap_or_default(),
        digest: digest(&image, None),
        note: None,
    };
    if let Some(image) = inspect(client, &name.to_string()).await.map_err(failed)? {
        let labels = image.config.as_ref().and_then(|config| config.labels.as_ref());
        if labels.and_then(|labels| labels.get(BASE)) == Some(&base_id) {
            return Ok(made(image));
        }
    }
    progress.send_replace(Progress { phase: "building image", pulled: None });
    let recipe = recipe(base, packages).map_err(RuntimeError::Unsuitable)?;
    let context = context(recipe, packages.to_vec())
        .await
        .map_err(|source| RuntimeError::Io { what: "packages could not be collected for an image", source })?;
    run(client, name, base_id, context)
        .await
        .map_err(|error| RuntimeError::Image { image: name.to_string(), why: error.to_string() })?;
    let image = inspect(client, &name.to_string()).await.map_err(failed)?;
    image.map(made).ok_or_else(|| RuntimeError::Image {
        image: name.to_string(),
        why: "it was built, and is not there".to_owned(),
    })
}

async fn run(client: &Client, name: &Reference, base_id: String, context: tokio::fs::File) -> Result<(), CallError> {
    let options = BuildImageOptions {
        dockerfile: "Dockerfile".to_owned(),
        t: Some(name.to_string()),
        nocache: true,
        rm: true,
        forcerm: true,
        labels: Some(HashMap::from([(DERIVED.to_owned(), "true".to_owned()), (BASE.to_owned(), base_id)])),
        ..Default::default()
    };
    let docker = client.patient(BUILD);
    within(BUILD, async {
        let body = bollard::body_try_stream(ReaderStream::new(context));
        let mut messages = pin!(docker.build_image(options, None, Some(body)));
        while let Some(message) = messages.next().await {
            message?;
        }
        Ok(())
    })
    .await
}

/// What is done to the base, in the words of a Dockerfile.
fn recipe(base: &Reference, packages: &[Package]) -> Result<String, String> {
    let mut command: Vec<String> =
        ["python3", "-m", "pip", "install", "--no-cache-dir", "--"].map(str::to_owned).to_vec();
    for (number, package) in packages.iter().enumerate() {
        command.push(package.argument(number)?);
    }
    let command = serde_json::Value::from(command);
    let local = packages.iter().any(|package| matches!(package, Package::Local(_)));
    let copy = if local { format!("COPY packages/ {PACKAGES}/\n") } else { String::new() };
    Ok(format!("FROM {base}\n{copy}RUN {command}\n"))
}

/// The recipe and the local packages as an archive, in a file that has no name.
async fn context(recipe: String, packages: Vec<Package>) -> io::Result<tokio::fs::File> {
    let archive = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(tempfile::tempfile()?);
        // Docker does not read the short form of files with holes.
        archive.sparse(false);
        let mut header = tar::Header::new_gnu();
        header.set_size(recipe.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "Dockerfile", recipe.as_bytes())?;
        for (number, package) in packages.iter().enumerate() {
            let Package::Local(path) = package else { continue };
            let Some(name) = path.file_name() else { continue };
            let inside = PathBuf::from(format!("packages/{number}")).join(name);
            if path.is_dir() {
                archive.append_dir_all(inside, path)?;
            } else {
                archive.append_path_with_name(path, inside)?;
            }
        }
        let mut file = archive.into_inner()?;
        io::Seek::rewind(&mut file)?;
        Ok::<_, io::Error>(file)
    });
    Ok(tokio::fs::File::from_std(archive.await.map_err(io::Error::other)??))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn base() -> Reference {
        Reference::parse("vllm/vllm-openai:v0.8.5").expect("a name")
    }

    fn named(name: &str) -> Package {
        Package::Named(name.to_owned())
    }

    #[test]
    fn the_same_packages_on_the_same_base_have_one_name() {
        let name =
            |packages: &[Package]| derived_name(LOCAL_REPOSITORY, &base(), packages).expect("a name").to_string();
        let one = name(&[named("flash-attn"), named("einops==0.8")]);
        assert_eq!(one, name(&[named("einops==0.8"), named("flash-attn")]));
        assert_ne!(one, name(&[named("einops==0.8")]));
        assert_ne!(name(&[named("ab"), named("c")]), name(&[named("a"), named("bc")]));
        let (start, hash) = one.rsplit_once('-').expect("a hash");
        assert_eq!((start, hash.len()), ("localhost/muster/local:v0.8.5", 16));
    }

    #[test]
    fn a_package_is_never_an_option_of_pip_or_a_line_of_the_recipe() {
        for package in ["--index-url=http://x", "", "a\nRUN rm"] {
            assert!(recipe(&base(), &[named(package)]).is_err(), "{package:?}");
        }
        let quoted = recipe(&base(), &[named("x\" ; y")]).expect("a recipe");
        assert!(quoted.ends_with("\"--\",\"x\\\" ; y\"]\n"), "{quoted}");
    }

    #[tokio::test]
    async fn local_packages_go_along() {
        let directory = tempfile::tempdir().expect("a directory");
        let wheel = directory.path().join("x.whl");
        std::fs::write(&wheel, "wheel").expect("a file");
        let packages = vec![named("einops"), Package::Local(wheel)];
        let recipe = recipe(&base(), &packages).expect("a recipe");
        assert!(recipe.contains("\"/opt/muster-packages/1/x.whl\"]"), "{recipe}");
        let mut file = context(recipe, packages).await.expect("a context").into_std().await;
        let mut archive = tar::Archive::new(&mut file);
        let mut contents = HashMap::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            contents.insert(path, text);
        }
        assert_eq!(contents["packages/1/x.whl"], "wheel");
        assert!(contents["Dockerfile"].starts_with("FROM vllm/vllm-openai:v0.8.5\nCOPY packages/ "));
    }
}
