//! `cnse tag`: another name for a stored model.

use serde_json::json;

use super::{Started, common, environment, failed, find};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::store::model::Resolved;
use crate::store::name::Tag;

pub const HELP: &str = concat!(
    "\
usage: cnse tag [FLAGS] REF NAME:TAG

Lets NAME:TAG name the model that REF names; what it named before loses that name.

examples:
  cnse tag gemma-2-2b-it:Q4_K_M chat:production
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("names", "REF NAME:TAG", "the model, and its new name"),
    common!(store),
    common!(filer),
    common!(json),
    common!(log),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    let [text, new] = parsed.texts("names")[..] else {
        return Err(Error::Usage("REF and NAME:TAG are needed".to_owned()));
    };
    let new: Tag =
        new.parse().map_err(|error: crate::store::Error| Error::Usage(error.to_string()))?;
    let (remote, cache) = (super::remote(parsed)?, super::cache(parsed)?);
    let Resolved::Model { id, .. } = find(&*remote, &cache, false, text)? else {
        return Err(Error::Failed(format!(
            "{text} is a blob or nothing, and a tag names a model: cnse ls lists them"
        )));
    };
    let old = remote.tag(&new).ok().flatten();
    // Young again, so that it is not removed while it has no name.
    let bytes = remote.manifest(&id).map_err(failed("tagging"))?;
    if let Some(bytes) = bytes {
        remote.put_manifest(&id, &bytes).map_err(failed("tagging"))?;
    }
    remote.put_tag(&new, &id).map_err(failed("tagging"))?;
    if parsed.has("json") {
        let body = json!({ "tag": new.to_string(), "manifest": id, "was": old });
        return crate::cli::print(&started.report(0, body));
    }
    crate::cli::print(&format!("{new} is {id}\n"))
}
