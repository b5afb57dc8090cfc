//! A report as one HTML file: nothing is fetched, no script is needed, and it prints well.

use super::document::{Block, Document, Fact, Notice, Table, Weight};
use crate::bench::chart::svg::escape;

const STYLE: &str = include_str!("style.css");

/// The file's text.
pub fn html(document: &Document) -> String {
    let title = escape(&document.title);
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    for block in &document.blocks {
        text += &self::block(block);
    }
    text + "</main>\n</body>\n</html>\n"
}

fn block(block: &Block) -> String {
    match block {
        Block::Heading(heading, under) => {
            let under = match under.as_str() {
                "" => String::new(),
                under => format!("<p class=\"under\">{}</p>\n", escape(under)),
            };
            format!("<h2>{}</h2>\n{under}", escape(heading))
        }
        Block::Part(heading) => format!("<h3>{}</h3>\n", escape(heading)),
        Block::Words(words) => format!("<p>{}</p>\n", escape(words)),
        Block::Notices(notices) => notices.iter().map(notice).collect(),
        Block::Facts(facts) => {
            let facts: String = facts.iter().map(fact).collect();
            format!("<div class=\"facts\">\n{facts}</div>\n")
        }
        Block::Table(table) => self::table(table),
        Block::Chart(chart) => format!("<figure>\n{}</figure>\n", chart.svg),
        Block::Code(code) => format!("<pre>{}</pre>\n", escape(code)),
        Block::Terms(terms) => {
            let terms = terms.iter().map(|(term, meaning)| {
                format!("<dt>{}</dt><dd>{}</dd>\n", escape(term), escape(meaning))
            });
            format!("<dl>\n{}</dl>\n", terms.collect::<String>())
        }
    }
}

/// A word says how grave it is, since colour alone does not reach everybody.
fn notice(notice: &Notice) -> String {
    let (class, word) = match notice.weight {
        Weight::Bad => ("bad", "Not to be believed"),
        Weight::Doubt => ("doubt", "Doubtful"),
        Weight::Answer => ("answer", "Verdict"),
        Weight::Good => ("good", "In order"),
    };
    let words = escape(&notice.words);
    format!("<p class=\"notice {class}\"><strong>{word}.</strong> {words}</p>\n")
}

fn fact(fact: &Fact) -> String {
    format!(
        "<div><span class=\"name\">{}</span><span class=\"value\">{}</span>\
         <span class=\"note\">{}</span></div>\n",
        escape(&fact.name),
        escape(&fact.value),
        escape(&fact.note)
    )
}

fn table(table: &Table) -> String {
    let lines = |cell: &String| match cell.split_once('\n') {
        Some((first, second)) => format!("{}<small>{}</small>", escape(first), escape(second)),
        None => escape(cell),
    };
    let row = |cells: &[String], tag: &str| {
        let cells = cells.iter().enumerate().map(|(index, cell)| match index {
            0 => format!("<th scope=\"row\">{}</th>", lines(cell)),
            _ => format!("<{tag}>{}</{tag}>", lines(cell)),
        });
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = table.rows.iter().map(|cells| row(cells, "td")).collect();
    let note = match table.note.as_str() {
        "" => String::new(),
        note => format!("<p class=\"under\">{}</p>\n", escape(note)),
    };
    let head = if table.columns.is_empty() {
        String::new()
    } else {
        format!("<thead>{}</thead>\n", row(&table.columns, "th").replace(" scope=\"row\"", ""))
    };
    let class = if table.is_text { " class=\"text\"" } else { "" };
    format!(
        "<div class=\"wide\"><table{class}>\n{head}<tbody>\n{rows}</tbody>\n</table></div>\n{note}"
    )
}

#[cfg(test)]
mod tests {
    use super::super::document::tests_of_blocks::every_block;
    use super::*;
    use crate::bench::chart::svg::tests::check;

    #[test]
    fn every_block_is_well_formed_and_escaped() {
        let text = html(&every_block("<script>alert(1)</script> & \"x\""));
        assert!(text.starts_with("<!DOCTYPE html>\n") && !text.contains("<script"));
        let body = &text[text.find("<main>").unwrap()..text.find("</body>").unwrap()];
        check(body);
        for fetched in ["src=", "href=", "url(", "@import", "http://", "https://"] {
            let found = text.matches(fetched).count();
            // The one address is the name of SVG's language.
            let names = text.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
            assert!(found == 0 || fetched == "http://" && found == names, "{fetched}");
        }
    }
}
