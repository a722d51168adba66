//! Which images of engines a node has, in one runtime or both, and how they are deleted.
//!
//! The stores name an image differently; it is the same one if its layers are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{ImageInspect, ImageSummary};
use bollard::query_parameters::{ListImagesOptions, RemoveImageOptions};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::super::ask;
use super::super::call::CallError;
use super::super::daemon::Client;
use super::super::flavour::Flavour;
use super::derived::DERIVED;
use super::{identity, inspect, plain_repository};

/// The repositories whose images are this product's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    repositories: Vec<String>,
}

impl Family {
    /// The family of these repositories.
    #[must_use]
    pub fn new<'a>(repositories: impl IntoIterator<Item = &'a str>) -> Self {
        Self { repositories: repositories.into_iter().map(|name| plain_repository(name).to_owned()).collect() }
    }

    /// Whether a tag or digest of a daemon is of the family.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.repositories.iter().any(|repository| plain_repository(name) == repository)
    }
}

/// What an image is made of, the same in all stores: the hash of the list of its layers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIdentity(String);

impl LayerIdentity {
    /// That of these layers.
    #[must_use]
    pub fn of(layers: &[String]) -> Self {
        let mut hash = Sha256::new();
        for layer in layers {
            hash.update(layer.as_bytes());
            hash.update(b"\n");
        }
        Self(HEXLOWER.encode(&hash.finalize()))
    }

    /// One that was given out before.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit())).then(|| Self(text.to_owned()))
    }

    /// As the API has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An image in one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldImage {
    /// Its identity in the store.
    pub id: String,
    /// What it is made of.
    pub layers: LayerIdentity,
    /// Its tags that are of the family.
    pub tags: Vec<String>,
    /// Its other tags.
    pub foreign_tags: Vec<String>,
    /// In bytes.
    pub size: u64,
    /// Whether it was built here for extra packages.
    pub derived: bool,
    /// How many containers are made from it, running or not.
    pub containers: usize,
}

/// What deleting an image means in one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The family's tags go, the image stays with the tags of others.
    Untag(Vec<String>),
    /// The image goes.
    Remove(String),
    /// It is only others' business.
    Leave,
}

/// What deleting an image means, so that nobody else loses theirs.
#[must_use]
pub fn deletion(image: &HeldImage) -> Deletion {
    match (image.tags.is_empty(), image.foreign_tags.is_empty()) {
        (false, false) => Deletion::Untag(image.tags.clone()),
        (_, true) => Deletion::Remove(image.id.clone()),
        (true, false) => Deletion::Leave,
    }
}

/// What was deleted in one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Tags that were taken off images that stay.
    pub untagged: Vec<String>,
    /// Images that are gone, by identity.
    pub removed: Vec<String>,
    /// In bytes, as far as the sizes tell: images share layers.
    pub freed: u64,
    /// What could not be deleted, and why.
    pub failed: Vec<(String, String)>,
}

/// An image in all stores of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedImage {
    /// What it is made of.
    pub layers: LayerIdentity,
    /// The family's tags, of all stores, each once.
    pub tags: Vec<String>,
    /// In bytes: the largest that a store says.
    pub size: u64,
    /// Where it is.
    pub copies: Vec<(Flavour, HeldImage)>,
}

/// Merges what the stores hold, by layers. The same input gives the same order.
#[must_use]
pub fn merge(stores: Vec<(Flavour, Vec<HeldImage>)>) -> Vec<MergedImage> {
    let mut merged: BTreeMap<LayerIdentity, MergedImage> = BTreeMap::new();
    for (flavour, images) in stores {
        for image in images {
            let entry = merged.entry(image.layers.clone()).or_insert_with(|| MergedImage {
                layers: image.layers.clone(),
                tags: Vec::new(),
                size: 0,
                copies: Vec::new(),
            });
            entry.size = entry.size.max(image.size);
            for tag in &image.tags {
                let plain =
                    ["docker.io/", "localhost/"].iter().find_map(|prefix| tag.strip_prefix(prefix)).unwrap_or(tag);
                if !entry.tags.iter().any(|known| known == plain) {
                    entry.tags.push(plain.to_owned());
                }
            }
            entry.copies.push((flavour, image));
        }
    }
    merged.into_values().collect()
}

/// The images of the family in a store, and copies of them that have other names.
pub(in super::super) async fn held(client: &Client, family: &Family) -> Result<Vec<HeldImage>, CallError> {
    // Digests come with the details: a Podman that is asked to list them answers nothing at all.
    let options = ListImagesOptions { all: false, ..Default::default() };
    let summaries = client.short(client.docker.list_images(Some(options))).await?;
    let containers = containers_by_image(client).await?;
    let mut held = Vec::new();
    let mut family_layers = BTreeSet::new();
    for summary in summaries {
        // An image may go between the list and the question.
        let Some(details) = inspect(client, &summary.id).await? else { continue };
        let image = read(&summary, &details, &containers, family);
        let named = details.repo_digests.iter().flatten().any(|digest| family.has(digest));
        if !image.tags.is_empty() || image.derived || named {
            family_layers.insert(image.layers.clone());
        }
        held.push(image);
    }
    held.retain(|image| family_layers.contains(&image.layers));
    held.sort_by(|a, b| (&a.tags, &a.id).cmp(&(&b.tags, &b.id)));
    Ok(held)
}

/// Deletes an image from a store. Nothing there is nothing to delete.
pub(in super::super) async fn delete(
    client: &Client,
    family: &Family,
    layers: &LayerIdentity,
) -> Result<Deleted, CallError> {
    let mut deleted = Deleted::default();
    for image in held(client, family).await?.into_iter().filter(|image| image.layers == *layers) {
        carry_out(client, &image, deletion(&image), &mut deleted).await;
    }
    Ok(deleted)
}

/// Deletes the family's images that no container is made from.
pub(in super::super) async fn prune(client: &Client, family: &Family) -> Result<Deleted, CallError> {
    let mut deleted = Deleted::default();
    for image in held(client, family).await?.into_iter().filter(is_unused) {
        carry_out(client, &image, deletion(&image), &mut deleted).await;
    }
    Ok(deleted)
}

/// Whether an image of the family may be pruned: no container of whatever state is made from it, and somebody here gave it
/// its name or made it.
fn is_unused(image: &HeldImage) -> bool {
    image.containers == 0 && (!image.tags.is_empty() || (image.derived && image.foreign_tags.is_empty()))
}

async fn carry_out(client: &Client, image: &HeldImage, deletion: Deletion, deleted: &mut Deleted) {
    let (names, whole) = match deletion {
        Deletion::Leave => return,
        Deletion::Untag(tags) => (tags, false),
        // A daemon refuses to delete by identity what has several tags, unless it is forced to, and force would also take it
        // from under a container. The last tag takes the image with it.
        Deletion::Remove(_) if image.tags.len() > 1 => (image.tags.clone(), true),
        Deletion::Remove(id) => (vec![id], true),
    };
    for name in names {
        let options = RemoveImageOptions { force: false, noprune: false, platforms: None };
        match client.long(async |docker| docker.remove_image(&name, Some(options), None).await).await {
            Ok(_) => {
                if !whole {
                    deleted.untagged.push(name);
                }
            }
            Err(error) if error.is_missing() => {}
            Err(error) => {
                deleted.failed.push((name, error.to_string()));
                return;
            }
        }
    }
    if whole {
        deleted.removed.push(image.id.clone());
        deleted.freed = deleted.freed.saturating_add(image.size);
    }
}

fn read(
    summary: &ImageSummary,
    details: &ImageInspect,
    containers: &HashMap<String, usize>,
    family: &Family,
) -> HeldImage {
    let id = identity(&summary.id);
    let layers = details.root_fs.as_ref().and_then(|root| root.layers.as_deref()).unwrap_or_default();
    // Two images of which nothing is known are not therefore the same.
    let layers =
        if layers.is_empty() { LayerIdentity::of(std::slice::from_ref(&id)) } else { LayerIdentity::of(layers) };
    let named = summary.repo_tags.iter().filter(|tag| !tag.starts_with("<none>"));
    let (tags, foreign_tags) = named.cloned().partition(|tag| family.has(tag));
    HeldImage {
        layers,
        tags,
        foreign_tags,
        size: u64::try_from(summary.size).unwrap_or(0),
        derived: summary.labels.get(DERIVED).is_some_and(|value| value == "true"),
        containers: containers.get(&id).copied().unwrap_or(0),
        id,
    }
}

async fn containers_by_image(client: &Client) -> Result<HashMap<String, usize>, CallError> {
    let containers = ask::list(client, &HashMap::new()).await?;
    let mut counts = HashMap::new();
    for id in containers.into_iter().filter_map(|container| container.image_id) {
        *counts.entry(identity(&id)).or_insert(0) += 1;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, layers: &str, tags: &[&str], foreign_tags: &[&str]) -> HeldImage {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        HeldImage {
            id: id.to_owned(),
            layers: LayerIdentity::of(&[layers.to_owned()]),
            tags: owned(tags),
            foreign_tags: owned(foreign_tags),
            size: 10,
            derived: false,
            containers: 0,
        }
    }

    /// B22.
    #[test]
    fn deleting_an_image_takes_nobody_elses_name_away() {
        let in_docker = image("d", "l", &["vllm/vllm-openai:v1"], &["mine:1"]);
        let in_podman = image("p", "l", &["docker.io/vllm/vllm-openai:v1"], &[]);
        assert_eq!(deletion(&in_docker), Deletion::Untag(vec!["vllm/vllm-openai:v1".to_owned()]));
        assert_eq!(deletion(&in_podman), Deletion::Remove("p".to_owned()));
        assert_eq!(deletion(&image("x", "l", &[], &["mine:1"])), Deletion::Leave);
        let merged = merge(vec![(Flavour::Docker, vec![in_docker]), (Flavour::Podman, vec![in_podman])]);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].tags, ["vllm/vllm-openai:v1"]);
        let places: Vec<_> = merged[0].copies.iter().map(|(flavour, image)| (*flavour, image.id.as_str())).collect();
        assert_eq!(places, [(Flavour::Docker, "d"), (Flavour::Podman, "p")]);
    }

    #[test]
    fn images_with_other_layers_are_other_images_whatever_they_are_called() {
        let one = image("a", "l1", &["vllm/vllm-openai:latest"], &[]);
        let two = image("b", "l2", &["vllm/vllm-openai:latest"], &[]);
        assert_eq!(merge(vec![(Flavour::Docker, vec![one]), (Flavour::Podman, vec![two])]).len(), 2);
        let split = LayerIdentity::of(&["ab".to_owned(), "c".to_owned()]);
        assert_ne!(split, LayerIdentity::of(&["a".to_owned(), "bc".to_owned()]));
    }

    #[test]
    fn what_a_container_is_made_from_is_not_pruned_and_neither_is_what_others_named() {
        let mut used = image("a", "l", &["vllm/vllm-openai:v1"], &[]);
        assert!(is_unused(&used));
        used.containers = 1;
        assert!(!is_unused(&used));
        assert!(!is_unused(&image("b", "l", &[], &["mine:1"])));
        let dangling = HeldImage { derived: true, ..image("c", "l", &[], &[]) };
        assert!(is_unused(&dangling));
    }

    #[test]
    fn the_family_is_known_in_the_spelling_of_both_runtimes() {
        let family = Family::new(["vllm/vllm-openai", "muster/local"]);
        for name in ["vllm/vllm-openai:v1", "docker.io/vllm/vllm-openai@sha256:0", "localhost/muster/local:v1-0"] {
            assert!(family.has(name), "{name}");
        }
        for name in ["vllm/vllm-openai-fork:v1", "registry.example/vllm/vllm-openai:v1", "<none>:<none>"] {
            assert!(!family.has(name), "{name}");
        }
    }

    #[test]
    fn an_image_is_read_from_what_the_daemon_lists() {
        let summary = ImageSummary {
            id: "aa".to_owned(),
            repo_tags: vec![
                "docker.io/vllm/vllm-openai:v1".to_owned(),
                "mine:1".to_owned(),
                "<none>:<none>".to_owned(),
            ],
            size: 7,
            ..Default::default()
        };
        let containers = HashMap::from([("sha256:aa".to_owned(), 2)]);
        let family = Family::new(["vllm/vllm-openai"]);
        let image = read(&summary, &ImageInspect::default(), &containers, &family);
        assert_eq!((image.id.as_str(), image.size, image.containers), ("sha256:aa", 7, 2));
        assert_eq!(image.tags, ["docker.io/vllm/vllm-openai:v1"]);
        assert_eq!(image.foreign_tags, ["mine:1"]);
    }
}
