//! Histograms over time in HdrHistogram's log format 1.3, which HistogramLogProcessor, the viewers
//! that are made of it, and the readers of other languages read.
//!
//! ```text
//! #[Histogram log format version 1.3]
//! #[StartTime: 1795456800.000 (seconds since epoch)]
//! "StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"
//! Tag=latency,12.000,1.000,83.456,HISTFAAA…
//! ```
//!
//! The library's own writer is not used: it leaves out the version and the headings, which the
//! original writes. Values are nanoseconds, since HistogramLogProcessor divides by a million to
//! show milliseconds. It shows one tag at a time (`-tag latency`).

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};

use super::Durations;

const NANOSECONDS_MAX: u64 = 3_600_000_000_000;

/// A log that is being written.
#[derive(Debug)]
pub struct IntervalLog<W> {
    out: W,
}

impl<W: Write> IntervalLog<W> {
    /// Writes the head of a log whose intervals are told from `start`.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn open(mut out: W, start: SystemTime) -> io::Result<IntervalLog<W>> {
        let since = start.duration_since(UNIX_EPOCH).unwrap_or_default();
        writeln!(out, "#[Histogram log format version 1.3]")?;
        writeln!(out, "#[StartTime: {:.3} (seconds since epoch)]", since.as_secs_f64())?;
        out.write_all(
            b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
              \"Interval_Compressed_Histogram\"\n",
        )?;
        Ok(IntervalLog { out })
    }

    /// Writes what was recorded from `start` (since the log's) for `length`. Nothing recorded, no
    /// line. A tag has no comma, space or line break; those become `_`.
    ///
    /// # Errors
    /// The log's file does not take it.
    pub fn write(
        &mut self,
        start: Duration,
        length: Duration,
        tag: &str,
        durations: &Durations,
    ) -> io::Result<()> {
        if durations.count() == 0 {
            return Ok(());
        }
        let histogram = nanoseconds(durations);
        let mut bytes = Vec::new();
        let written = V2DeflateSerializer::new().serialize(&histogram, &mut bytes);
        written.map_err(|error| io::Error::other(error.to_string()))?;
        writeln!(
            self.out,
            "Tag={},{:.3},{:.3},{:.3},{}",
            tag.replace([',', ' ', '\r', '\n'], "_"),
            start.as_secs_f64(),
            length.as_secs_f64(),
            durations.max_ms().unwrap_or_default(),
            STANDARD.encode(&bytes)
        )
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// The log's file does not take it.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn nanoseconds(durations: &Durations) -> Histogram<u64> {
    let histogram = Histogram::new_with_bounds(1, NANOSECONDS_MAX, 3);
    let mut histogram = histogram.expect("the bounds are constants that it takes");
    for (us, count) in durations.recorded_us() {
        histogram.saturating_record_n(us.saturating_mul(1_000), count);
    }
    histogram
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    #[test]
    fn the_librarys_own_reader_reads_it() {
        let start = UNIX_EPOCH + Duration::from_millis(1_795_456_800_250);
        let mut bytes = Vec::new();
        let mut log = IntervalLog::open(&mut bytes, start).unwrap();
        let mut durations = Durations::default();
        (1..=1_000).for_each(|ms| durations.record(ms * 1_000));
        let (second, quarter) = (Duration::from_secs(1), Duration::from_millis(250));
        log.write(second, quarter, "a b,c", &durations).unwrap();
        log.write(second, quarter, "none", &Durations::default()).unwrap();
        log.flush().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        let head: Vec<&str> = text.lines().take(3).collect();
        assert_eq!(
            head,
            [
                "#[Histogram log format version 1.3]",
                "#[StartTime: 1795456800.250 (seconds since epoch)]",
                "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
                 \"Interval_Compressed_Histogram\"",
            ]
        );
        assert!(text.lines().nth(3).unwrap().contains(",HISTFAAA"), "{text}");
        let entries: Vec<LogEntry<'_>> = IntervalLogIterator::new(&bytes).flatten().collect();
        let [LogEntry::StartTime(at), LogEntry::Interval(interval)] = &entries[..] else {
            panic!("{entries:?}");
        };
        assert_eq!(at.as_millis(), 1_795_456_800_250);
        assert_eq!(interval.tag().unwrap().as_str(), "a_b_c");
        assert_eq!((interval.start_timestamp(), interval.duration()), (second, quarter));
        assert!((interval.max() - 1_000.0).abs() < 1.0, "{}", interval.max());
        let histogram = STANDARD.decode(interval.encoded_histogram()).unwrap();
        let histogram: Histogram<u64> =
            Deserializer::new().deserialize(&mut histogram.as_slice()).unwrap();
        assert_eq!(histogram.len(), 1_000);
        let p99 = histogram.value_at_quantile(0.99) as f64;
        assert!((p99 / 990e6 - 1.0).abs() < 0.001, "{p99}");
    }
}
