//! Images: got before a container starts, made with extra packages, listed, deleted and pruned.

mod copy;
mod derived;
mod ensure;
mod housekeeping;
mod pull;
mod reference;

use bollard::models::ImageInspect;

pub use derived::{LOCAL_REPOSITORY, Package, derived_name};
pub use housekeeping::{Deleted, Deletion, Family, HeldImage, LayerIdentity, MergedImage, deletion, merge};
pub use reference::Reference;

pub(super) use derived::build;
pub(super) use ensure::{Ensured, ensure, ensure_local};
pub(super) use housekeeping::{delete, held, prune};
use reference::plain_repository;

use super::call::CallError;
use super::daemon::Client;

/// An image of a daemon, if it has it.
pub(super) async fn inspect(client: &Client, name: &str) -> Result<Option<ImageInspect>, CallError> {
    match client.short(client.docker.inspect_image(name)).await {
        Ok(image) => Ok(Some(image)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an image is exactly: its digest in this repository, or in another one, or its identity.
pub(super) fn digest(image: &ImageInspect, repository: Option<&str>) -> Option<String> {
    let digests = image.repo_digests.as_deref().unwrap_or_default();
    let of_repository = repository.and_then(|repository| {
        let wanted = plain_repository(repository);
        digests.iter().find(|digest| plain_repository(digest) == wanted)
    });
    of_repository.or_else(|| digests.first()).cloned().or_else(|| image.id.as_deref().map(identity))
}

/// An image's identity with the algorithm that Podman leaves out.
pub(super) fn identity(id: &str) -> String {
    if id.contains(':') { id.to_owned() } else { format!("sha256:{id}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_the_digest_of_the_repository_it_was_asked_from() {
        let image = ImageInspect {
            id: Some("aa".to_owned()),
            repo_digests: Some(vec!["other/x@sha256:1".to_owned(), "docker.io/vllm/vllm-openai@sha256:2".to_owned()]),
            ..Default::default()
        };
        let named = digest(&image, Some("vllm/vllm-openai"));
        assert_eq!(named.as_deref(), Some("docker.io/vllm/vllm-openai@sha256:2"));
        let built_here = ImageInspect { repo_digests: None, ..image };
        assert_eq!(digest(&built_here, Some("vllm/vllm-openai")).as_deref(), Some("sha256:aa"));
    }
}
