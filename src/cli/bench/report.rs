//! `cnse bench report`: saved results as a page, pictures and Markdown.

use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use crate::bench::page::document::Document;
use crate::bench::page::html::html;
use crate::bench::page::markdown::markdown;
use crate::bench::page::{self, Source};
use crate::bench::record::Record;
use crate::cli::flags::{Flag, Parsed};
use crate::cli::{Error, print};

pub const HELP: &str = "\
usage: cnse bench report FILE… [FLAGS]

Draws saved results (of cnse … --json) as one HTML file that needs no network and no script: what
was measured and whether it is to be believed, figures with their intervals, charts, the
environment, and what the words mean. Of several results the first is what the others are held
against. - reads one from stdin. Without --html, --markdown, --svg and --png the HTML goes to
stdout.

examples:
  cnse bench latency --server http://127.0.0.1:8090 --iters 1000 --json > run.json
  cnse bench report run.json > run.html
  cnse bench report before.json after.json --html change.html
  cnse bench report run.json --markdown BENCH.md --svg charts
";

pub const FLAGS: &[Flag] = &[
    Flag::words("FILE", "results, as --json printed them; - is stdin"),
    Flag::new("html", "FILE", "where the page goes; - is stdout"),
    Flag::new("markdown", "FILE", "the same as Markdown, for a README; - is stdout"),
    Flag::new("svg", "DIR", "each chart as a file of its own"),
    Flag::new("png", "DIR", "the same as PNG, 1520 pixels wide (cargo feature png)"),
    Flag::new("title", "TEXT", "what stands on top (the command and the files' names)"),
];

/// Files of one report; a chart tells seven lines apart.
const FILES_MAX: usize = 64;

pub fn run(parsed: &Parsed) -> Result<(), Error> {
    let files = parsed.texts("");
    if files.is_empty() {
        return Err(Error::Usage("FILE is needed: a result that --json printed".to_owned()));
    }
    if files.len() > FILES_MAX {
        let message =
            format!("{} files are too many for one report: {FILES_MAX} at most", files.len());
        return Err(Error::Usage(message));
    }
    let outputs = Outputs::new(parsed)?;
    let sources = sources(&files)?;
    let document = page::report(&sources, parsed.text("title"));
    outputs.write(&document)
}

/// Where everything goes.
struct Outputs {
    html: Option<PathBuf>,
    markdown: Option<PathBuf>,
    svg: Option<PathBuf>,
    png: Option<PathBuf>,
}

impl Outputs {
    fn new(parsed: &Parsed) -> Result<Outputs, Error> {
        let path = |name: &str| parsed.text(name).map(PathBuf::from);
        let [html, markdown, svg, png] = ["html", "markdown", "svg", "png"].map(path);
        if png.is_some() && cfg!(not(feature = "png")) {
            let message = "--png: this cnse was built without it; build with --features png, or \
                           use --svg";
            return Err(Error::Usage(message.to_owned()));
        }
        let is_stdout = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        if is_stdout(&html) && is_stdout(&markdown) {
            let message = "--html - and --markdown - both want stdout";
            return Err(Error::Usage(message.to_owned()));
        }
        let mut outputs = Outputs { html, markdown, svg, png };
        let Outputs { html, markdown, svg, png } = &outputs;
        if html.is_none() && markdown.is_none() && svg.is_none() && png.is_none() {
            if std::io::stdout().is_terminal() {
                let message = "the page is HTML, which a terminal does not show: add --html FILE, \
                               or > FILE";
                return Err(Error::Usage(message.to_owned()));
            }
            outputs.html = Some(PathBuf::from("-"));
        }
        Ok(outputs)
    }

    fn write(&self, document: &Document) -> Result<(), Error> {
        if let Some(folder) = &self.svg {
            let svg = |svg: &str| Ok(svg.as_bytes().to_vec());
            write_charts(document, folder, "svg", svg)?;
        }
        if let Some(folder) = &self.png {
            write_charts(document, folder, "png", png)?;
        }
        if let Some(path) = &self.html {
            write(path, html(document).as_bytes())?;
        }
        if let Some(path) = &self.markdown {
            let charts = match (&self.svg, &self.png) {
                (Some(folder), _) => Some((folder, "svg")),
                (None, folder) => folder.as_ref().map(|folder| (folder, "png")),
            };
            let (folder, ending) = charts.unzip();
            let link = folder.map(|folder| link(path, folder));
            let text = markdown(document, link.as_deref(), ending.unwrap_or_default());
            write(path, text.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(feature = "png")]
fn png(svg: &str) -> Result<Vec<u8>, String> {
    crate::bench::chart::png::png(svg)
}

/// `Outputs::new` has refused it.
#[cfg(not(feature = "png"))]
fn png(_: &str) -> Result<Vec<u8>, String> {
    Err("this cnse was built without the feature png".to_owned())
}

fn sources(files: &[&str]) -> Result<Vec<Source>, Error> {
    let stem = |file: &str| match Path::new(file).file_stem() {
        Some(stem) if file != "-" => stem.to_string_lossy().into_owned(),
        _ => "stdin".to_owned(),
    };
    if files.iter().filter(|file| **file == "-").count() > 1 {
        return Err(Error::Usage("- stands twice, and there is one stdin".to_owned()));
    }
    let read = |file: &&str| {
        let record = match *file {
            "-" => from_stdin(),
            file => Record::read(Path::new(file)),
        };
        // Two files of one name are told apart by their folders.
        let alike = files.iter().filter(|other| stem(other) == stem(file)).count();
        let name = if alike > 1 { (*file).to_owned() } else { stem(file) };
        Ok(Source { name, record: record.map_err(Error::Failed)? })
    };
    files.iter().map(read).collect()
}

fn from_stdin() -> Result<Record, String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map_err(|error| format!("reading stdin: {error}"))?;
    Record::parse(&text).map_err(|error| format!("stdin: {error}"))
}

/// A folder as a link in a file says it: from where that file is.
fn link(file: &Path, folder: &Path) -> String {
    let from = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let inside = from.and_then(|from| folder.strip_prefix(from).ok()).unwrap_or(folder);
    let text = inside.to_string_lossy().replace(' ', "%20").replace('(', "%28").replace(')', "%29");
    if text.is_empty() { ".".to_owned() } else { text }
}

fn write_charts(
    document: &Document,
    folder: &Path,
    ending: &str,
    of: impl Fn(&str) -> Result<Vec<u8>, String>,
) -> Result<(), Error> {
    fs::create_dir_all(folder)
        .map_err(|error| Error::Failed(format!("making {folder:?}: {error}")))?;
    for chart in document.charts() {
        let bytes = of(&chart.svg).map_err(Error::Failed)?;
        write(&folder.join(format!("{}.{ending}", chart.name)), &bytes)?;
    }
    Ok(())
}

/// A file that is whole or not there, so that a full disk leaves no half page; - is stdout.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if path == Path::new("-") {
        return print(&String::from_utf8_lossy(bytes));
    }
    let failed = |error: std::io::Error| Error::Failed(format!("writing {path:?}: {error}"));
    // A device or a pipe is written as it is.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return fs::write(path, bytes).map_err(failed);
    }
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    written.map_err(|error| {
        // What is left of it is nobody's; that it cannot be removed changes nothing.
        let _ = fs::remove_file(&part);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_from_where_the_file_is() {
        for (file, folder, expected) in [
            ("README.md", "charts", "charts"),
            ("docs/bench.md", "docs/charts", "charts"),
            ("docs/bench.md", "docs", "."),
            ("docs/bench.md", "/tmp/a b", "/tmp/a%20b"),
            ("-", "charts", "charts"),
        ] {
            assert_eq!(link(Path::new(file), Path::new(folder)), expected);
        }
    }
}
