//! Removes from a remote what no tag leads to: marks from tags over manifests to blobs, and sweeps
//! the rest, if it is old enough.
//!
//! A `put` that runs beside it is safe by age: what it stores or finds is made young first, and its
//! manifest comes before its tag. So a grace that is longer than the longest `put` loses nothing.

use std::collections::HashSet;
use std::time::Duration;

use super::digest::Digest;
use super::error::Error;
use super::model::read_manifest;
use super::remote::{Entry, Leftover, Remote};

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Manifests that no tag names.
    pub manifests: Vec<Entry>,
    /// Blobs that no manifest names.
    pub blobs: Vec<Entry>,
    /// Uploads that were given up.
    pub leftovers: Vec<Leftover>,
    /// Blobs that stay, named or young.
    pub kept: usize,
    /// Bytes that become free.
    pub bytes: u64,
}

/// Removes what no tag leads to and what is older than `grace`; with `is_dry` it only tells.
///
/// # Errors
/// The remote does not answer or list; a manifest that a tag names is missing or refused, and then
/// nothing is removed, since nobody knows what it would name.
pub fn collect(remote: &dyn Remote, grace: Duration, is_dry: bool) -> Result<Swept, Error> {
    let mut swept = mark(remote, grace)?;
    if is_dry {
        return Ok(swept);
    }
    // A `put` may have found one of them meanwhile, and made it young.
    let again = mark(remote, grace)?;
    let doomed: HashSet<Digest> = again.blobs.iter().map(|entry| entry.digest).collect();
    swept.blobs.retain(|entry| doomed.contains(&entry.digest));
    swept
        .manifests
        .retain(|entry| again.manifests.iter().any(|other| other.digest == entry.digest));
    for entry in &swept.manifests {
        remote.remove_manifest(&entry.digest)?;
    }
    for entry in &swept.blobs {
        remote.remove_blob(&entry.digest)?;
    }
    for leftover in &swept.leftovers {
        remote.remove_leftover(leftover)?;
    }
    Ok(swept)
}

fn mark(remote: &dyn Remote, grace: Duration) -> Result<Swept, Error> {
    // What can be removed is listed before what keeps it: what comes in between is kept.
    let (blobs, manifests, leftovers) = (remote.blobs()?, remote.manifests()?, remote.leftovers()?);
    let tagged: HashSet<Digest> = remote.tags()?.into_iter().map(|(_, id)| id).collect();
    let (mut marked, mut swept) = (HashSet::new(), Swept::default());
    for id in &tagged {
        let missing =
            || Error::NotFound { what: format!("the manifest {id}"), at: remote.describe() };
        mark_files(remote, id, &remote.manifest(id)?.ok_or_else(missing)?, &mut marked)?;
    }
    for entry in manifests {
        if tagged.contains(&entry.digest) {
            continue;
        }
        if entry.age >= grace {
            swept.manifests.push(entry);
        } else if let Some(bytes) = remote.manifest(&entry.digest)? {
            // Its tag may be about to come. One that is refused never gets a tag.
            let _ = mark_files(remote, &entry.digest, &bytes, &mut marked);
        }
    }
    let (kept, doomed): (Vec<Entry>, Vec<Entry>) =
        blobs.into_iter().partition(|blob| marked.contains(&blob.digest) || blob.age < grace);
    swept.kept = kept.len();
    swept.blobs = doomed;
    swept.leftovers = leftovers.into_iter().filter(|leftover| leftover.age >= grace).collect();
    let sizes = swept.blobs.iter().chain(&swept.manifests).map(|entry| entry.size);
    swept.bytes = sizes.chain(swept.leftovers.iter().map(|leftover| leftover.size)).sum();
    Ok(swept)
}

fn mark_files(
    remote: &dyn Remote,
    id: &Digest,
    bytes: &[u8],
    marked: &mut HashSet<Digest>,
) -> Result<(), Error> {
    let manifest = read_manifest(id, bytes, &remote.describe())?;
    marked.extend(manifest.files.iter().map(|file| file.sha256));
    Ok(())
}
