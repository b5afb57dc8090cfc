//! `cnse rm`: removes names.

use serde_json::json;

use super::{Started, common, environment, failed};
use crate::cli::Error;
use crate::cli::flags::{Flag, Parsed};
use crate::store::name::Tag;

pub const HELP: &str = concat!(
    "\
usage: cnse rm [FLAGS] NAME:TAG…

Removes names. What they named stays until cnse gc removes what no name leads to.

examples:
  cnse rm gemma-2-2b-it:Q4_K_M
",
    environment!()
);

pub const FLAGS: &[Flag] = &[
    Flag::operands("names", "NAME:TAG", "the names"),
    common!(store),
    common!(filer),
    common!(json),
    common!(log),
];

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let started = Started::now();
    crate::cli::log_level(parsed)?;
    let mut tags = Vec::new();
    for text in parsed.texts("names") {
        let tag: Result<Tag, _> = text.parse();
        tags.push(tag.map_err(|error| Error::Usage(error.to_string()))?);
    }
    if tags.is_empty() {
        return Err(Error::Usage("NAME:TAG is needed".to_owned()));
    }
    let remote = super::remote(parsed)?;
    let (mut removed, mut missing) = (Vec::new(), Vec::new());
    for tag in tags {
        let was_there = remote.remove_tag(&tag).map_err(failed("removing"))?;
        let list = if was_there { &mut removed } else { &mut missing };
        list.push(tag.to_string());
    }
    if parsed.has("json") {
        let body = json!({ "removed": removed, "missing": missing });
        crate::cli::print(&started.report(missing.len() as u64, body))?;
    } else {
        let lines: String = removed.iter().map(|tag| format!("{tag} removed\n")).collect();
        crate::cli::print(&lines)?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let at = remote.describe();
    Err(Error::Failed(format!("not in {at}: {}; cnse ls lists what is there", missing.join(" "))))
}
