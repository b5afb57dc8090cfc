//! The text format 0.0.4 that Prometheus scrapes
//! (prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::Write;

use super::counter::{BOUNDS_US, LatencyHistogram};

/// A page of metrics in the making.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// An empty page.
    pub fn new() -> Page {
        Page::default()
    }

    /// A metric with one value for each set of labels (`a="b",c="d"`, or empty).
    pub fn metric(&mut self, name: &str, kind: &str, help: &str, values: &[(String, u64)]) {
        self.head(name, kind, help);
        for (labels, value) in values {
            self.sample(name, labels, &value.to_string());
        }
    }

    /// The same of values that are not whole.
    pub fn decimal(&mut self, name: &str, kind: &str, help: &str, values: &[(String, f64)]) {
        self.head(name, kind, help);
        for (labels, value) in values {
            self.sample(name, labels, &value.to_string());
        }
    }

    /// A histogram in seconds, summed over the cores.
    pub fn histogram<'h>(
        &mut self,
        name: &str,
        help: &str,
        cores: impl Iterator<Item = &'h LatencyHistogram>,
    ) {
        let (mut buckets, mut sum) = ([0; BOUNDS_US.len() + 1], 0);
        for core in cores {
            let (counts, us) = core.read();
            buckets.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
            sum += us;
        }
        self.head(name, "histogram", help);
        let mut total = 0;
        for (i, count) in buckets.iter().enumerate() {
            total += count;
            let bound = BOUNDS_US.get(i).map(|&us| (us as f64 / 1e6).to_string());
            let labels = format!("le=\"{}\"", bound.as_deref().unwrap_or("+Inf"));
            self.sample(&format!("{name}_bucket"), &labels, &total.to_string());
        }
        self.sample(&format!("{name}_sum"), "", &(sum as f64 / 1e6).to_string());
        self.sample(&format!("{name}_count"), "", &total.to_string());
    }

    /// The page.
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let written = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        debug_assert!(written.is_ok(), "a String takes every write");
    }

    fn sample(&mut self, name: &str, labels: &str, value: &str) {
        self.text.push_str(name);
        if !labels.is_empty() {
            self.text.extend(["{", labels, "}"]);
        }
        self.text.extend([" ", value, "\n"]);
    }
}

/// A label with its value escaped.
pub fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let mut page = Page::new();
        page.metric("x_total", "counter", "Xs.", &[(label("a", "q\"\\"), 2)]);
        let histogram = LatencyHistogram::default();
        histogram.record(150);
        page.histogram("y_seconds", "Ys.", [&histogram, &histogram].into_iter());
        let text = page.finish();
        assert!(text.starts_with(
            "# HELP x_total Xs.\n# TYPE x_total counter\nx_total{a=\"q\\\"\\\\\"} 2\n"
        ));
        assert!(
            text.contains("y_seconds_bucket{le=\"0.0001\"} 0\ny_seconds_bucket{le=\"0.0002\"} 2\n")
        );
        assert!(text.ends_with(
            "y_seconds_bucket{le=\"+Inf\"} 2\ny_seconds_sum 0.0003\ny_seconds_count 2\n"
        ));
    }
}
