//! A report as blocks, before it is HTML or Markdown.

/// A report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// What it is.
    pub title: String,
    /// From top to bottom.
    pub blocks: Vec<Block>,
}

/// A part of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A heading, and a line under it that says what is meant.
    Heading(String, String),
    /// A heading within that.
    Part(String),
    /// A paragraph.
    Words(String),
    /// What a reader must know first.
    Notices(Vec<Notice>),
    /// Figures that stand out, with what they are.
    Facts(Vec<Fact>),
    /// Rows of cells.
    Table(Table),
    /// A picture.
    Chart(Chart),
    /// A command line.
    Code(String),
    /// Terms and their meanings.
    Terms(Vec<(String, String)>),
}

/// Something to know before the figures are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How grave.
    pub weight: Weight,
    /// What, in a sentence or two.
    pub words: String,
}

/// How grave a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The figures are not what they seem.
    Bad,
    /// They are to be doubted.
    Doubt,
    /// What was asked is answered.
    Answer,
    /// All is well.
    Good,
}

/// A figure that stands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// With its unit.
    pub value: String,
    /// Its interval, or where it comes from.
    pub note: String,
}

/// Rows of cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// What stands above each column; the first is of names, the others of numbers.
    pub columns: Vec<String>,
    /// As wide as the columns; what stands on a second line of a cell belongs to the first.
    pub rows: Vec<Vec<String>>,
    /// What stands under it.
    pub note: String,
    /// Cells are words and not numbers.
    pub is_text: bool,
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    /// Of its file, without an ending.
    pub name: String,
    /// What it is, in words.
    pub title: String,
    /// The picture.
    pub svg: String,
}

impl Document {
    /// All pictures, each under a name of its own.
    pub fn charts(&self) -> impl Iterator<Item = &Chart> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Chart(chart) => Some(chart),
            _ => None,
        })
    }

    /// Adds a picture; its file's name is made different from those before.
    pub fn chart(&mut self, name: &str, title: &str, svg: String) {
        let plain: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let parts: Vec<&str> = plain.split('-').filter(|part| !part.is_empty()).collect();
        let plain = parts.join("-").chars().take(NAME_CHARS_MAX).collect::<String>();
        let mut name = plain.clone();
        let mut number = 1;
        while self.charts().any(|chart| chart.name == name) {
            number += 1;
            name = format!("{plain}-{number}");
        }
        self.blocks.push(Block::Chart(Chart { name, title: title.to_owned(), svg }));
    }

    /// Adds a paragraph.
    pub fn words(&mut self, words: impl Into<String>) {
        self.blocks.push(Block::Words(words.into()));
    }
}

/// Of a picture's file name; file systems take 255, and people read less.
const NAME_CHARS_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_names_of_their_own_that_are_safe_as_files() {
        let mut document = Document::default();
        for name in ["../Über TTFT, ms", "ttft-ms", "ttft ms", &"x".repeat(400)] {
            document.chart(name, "t", String::new());
        }
        let names: Vec<&str> = document.charts().map(|chart| chart.name.as_str()).collect();
        assert_eq!(names, ["ber-ttft-ms", "ttft-ms", "ttft-ms-2", &"x".repeat(80)]);
    }
}

/// A document with a block of each kind, for tests of those that write it.
#[cfg(test)]
pub mod tests_of_blocks {
    use super::*;
    use crate::bench::chart::svg::Svg;

    /// With these words everywhere.
    pub fn every_block(words: &str) -> Document {
        let words = words.to_owned();
        let weights = [Weight::Bad, Weight::Doubt, Weight::Answer, Weight::Good];
        let notice = |weight| Notice { weight, words: words.clone() };
        let fact = Fact { name: words.clone(), value: "1 ms".to_owned(), note: words.clone() };
        let table = Table {
            columns: vec![words.clone(), words.clone()],
            rows: vec![vec![words.clone(), "1".to_owned()]],
            note: words.clone(),
            is_text: true,
        };
        let mut document = Document { title: words.clone(), ..Document::default() };
        document.blocks = vec![
            Block::Heading(words.clone(), words.clone()),
            Block::Heading(words.clone(), String::new()),
            Block::Part(words.clone()),
            Block::Words(words.clone()),
            Block::Notices(weights.map(notice).to_vec()),
            Block::Facts(vec![fact]),
            Block::Table(table),
            Block::Table(Table::default()),
            Block::Code(words.clone()),
            Block::Terms(vec![(words.clone(), words.clone())]),
        ];
        document.chart(&words, &words, Svg::new(10.0, 10.0, &words, &words).finish());
        document
    }
}
