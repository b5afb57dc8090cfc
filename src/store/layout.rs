//! Where things are in a remote, the same in a directory and on a filer.
//!
//! ```text
//!   <root>/blobs/sha256/ab/<64 digits>                a blob as one file
//!   <root>/blobs/sha256/ab/<64 digits>.parts/00042    a blob as part objects
//!   <root>/blobs/sha256/ab/<64 digits>.json           its record; a blob is there once both are
//!   <root>/manifests/<64 digits>.json                 by the SHA-256 of its bytes
//!   <root>/tags/<name>/<tag>                          64 digits of a manifest, and a line feed
//!   <root>/tmp/…                                      whatever is under way
//! ```

use super::digest::Digest;
use super::name::Tag;

/// Folder of all blobs.
pub const BLOBS: &str = "blobs/sha256";
/// Folder of all manifests.
pub const MANIFESTS: &str = "manifests";
/// Folder of all tags.
pub const TAGS: &str = "tags";
/// Folder of what is under way.
pub const TMP: &str = "tmp";
/// How records and manifests end.
pub const JSON: &str = ".json";
/// How the folder of a blob's part objects ends.
pub const PARTS: &str = ".parts";

/// A blob, as one file.
pub fn blob(digest: &Digest) -> String {
    format!("{BLOBS}/{:02x}/{digest}", digest.0[0])
}

/// A blob's part, where it is kept as part objects.
pub fn part(digest: &Digest, index: u32) -> String {
    format!("{}{PARTS}/{index:05}", blob(digest))
}

/// A blob's record.
pub fn record(digest: &Digest) -> String {
    format!("{}{JSON}", blob(digest))
}

/// A manifest.
pub fn manifest(id: &Digest) -> String {
    format!("{MANIFESTS}/{id}{JSON}")
}

/// A tag.
pub fn tag(tag: &Tag) -> String {
    format!("{TAGS}/{}/{}", tag.name(), tag.tag())
}

/// What a tag's file holds.
pub fn tag_text(id: &Digest) -> String {
    format!("{id}\n")
}

/// The manifest that a tag's file names; none: it is no tag.
pub fn tag_target(text: &[u8]) -> Option<Digest> {
    std::str::from_utf8(text).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let digest = Digest::of(b"");
        let hex = digest.to_string();
        assert_eq!(blob(&digest), format!("blobs/sha256/e3/{hex}"));
        assert_eq!(part(&digest, 42), format!("blobs/sha256/e3/{hex}.parts/00042"));
        assert_eq!(record(&digest), format!("blobs/sha256/e3/{hex}.json"));
        assert_eq!(manifest(&digest), format!("manifests/{hex}.json"));
        assert_eq!(tag(&"a:b".parse().unwrap()), "tags/a/b");
        assert_eq!(tag_target(tag_text(&digest).as_bytes()), Some(digest));
        assert_eq!((tag_target(b"x"), tag_target(b"\xff")), (None, None));
    }
}
