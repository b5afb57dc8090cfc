//! A report as Markdown, for a README: tables, and pictures by their files' names.

use super::document::{Block, Document, Table, Weight};

/// The text; `folder` is where the pictures are, as a link says it; None: they are left out.
pub fn markdown(document: &Document, folder: Option<&str>, ending: &str) -> String {
    let mut text = format!("# {}\n", plain(&document.title));
    for block in &document.blocks {
        let block = match block {
            Block::Heading(heading, under) if under.is_empty() => {
                format!("## {}\n", plain(heading))
            }
            Block::Heading(heading, under) => {
                format!("## {}\n\n{}\n", plain(heading), plain(under))
            }
            Block::Part(heading) => format!("### {}\n", plain(heading)),
            Block::Words(words) => format!("{}\n", plain(words)),
            Block::Notices(notices) => {
                let notice = notices.iter().map(|notice| {
                    let word = match notice.weight {
                        Weight::Bad => "Not to be believed",
                        Weight::Doubt => "Doubtful",
                        Weight::Answer => "Verdict",
                        Weight::Good => "In order",
                    };
                    format!("- **{word}.** {}\n", plain(&notice.words))
                });
                notice.collect()
            }
            Block::Facts(facts) => table(&Table {
                columns: ["figure", "value", ""].map(str::to_owned).to_vec(),
                rows: facts
                    .iter()
                    .map(|fact| vec![fact.name.clone(), fact.value.clone(), fact.note.clone()])
                    .collect(),
                ..Table::default()
            }),
            Block::Table(rows) => table(rows),
            Block::Chart(chart) => match folder {
                Some(folder) => {
                    format!("![{}]({folder}/{}.{ending})\n", plain(&chart.title), chart.name)
                }
                None => continue,
            },
            Block::Code(code) => {
                // A fence longer than any in it.
                let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
                let fence = "`".repeat(longest.max(2) + 1);
                format!("{fence}\n{}\n{fence}\n", code.replace('\n', " "))
            }
            Block::Terms(terms) => terms
                .iter()
                .map(|(term, meaning)| format!("- **{}**: {}\n", plain(term), plain(meaning)))
                .collect(),
        };
        text.push('\n');
        text += &block;
    }
    text
}

/// Words of which no character means anything else.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' => plain.extend(['\\', c]),
            c if c.is_control() => plain.push(' '),
            c => plain.push(c),
        }
    }
    plain
}

fn table(table: &Table) -> String {
    let width = table.rows.iter().map(Vec::len).chain([table.columns.len()]).max().unwrap_or(0);
    let cell = |cell: Option<&String>| match cell.and_then(|cell| cell.split_once('\n')) {
        Some((first, second)) => format!("{} ({})", plain(first), plain(second)),
        None => cell.map_or(String::new(), |cell| plain(cell)),
    };
    let row = |cells: &[String]| {
        let cells = (0..width).map(|at| cell(cells.get(at)));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = (0..width).map(|at| if at == 0 { "---" } else { "---:" });
    let mut text = row(&table.columns);
    text += &format!("| {} |\n", rule.collect::<Vec<_>>().join(" | "));
    table.rows.iter().for_each(|cells| text += &row(cells));
    if !table.note.is_empty() {
        text += &format!("\n{}\n", plain(&table.note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::document::tests_of_blocks::every_block;
    use super::*;

    #[test]
    fn every_block_is_there_and_means_nothing_else() {
        let document = every_block("a|b <i> `x`");
        let text = markdown(&document, Some("charts"), "svg");
        assert!(text.starts_with("# a\\|b \\<i\\> \\`x\\`\n"), "{text}");
        assert!(text.contains("](charts/a-b-i-x.svg)\n"), "{text}");
        assert!(text.contains("| a\\|b \\<i\\> \\`x\\` | 1 |\n"), "{text}");
        assert!(!markdown(&document, None, "svg").contains("!["));
    }
}
