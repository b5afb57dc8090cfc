//! The two ways in which the filer writes times.

use std::time::Duration;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since 1970 of an HTTP date (RFC 9110, 5.6.7): `Tue, 24 Nov 2026 19:42:56 GMT`.
pub fn http_date(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    seconds(year.parse().ok()?, month, day.parse().ok()?, time)
}

/// Since 1970, of an RFC 3339 time in whole seconds: `2026-11-24T19:42:25.149188992Z`. The filer
/// writes them in its own time zone.
pub fn rfc3339(text: &str) -> Option<Duration> {
    let (date, rest) = text.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let time = rest.get(..8)?;
    let zone = rest.get(8..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let local = seconds(year, month, day, time)?;
    let east = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), ..] => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let away = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if *sign == b'+' { away } else { -away }
        }
        _ => return None,
    };
    Some(Duration::from_secs(local.checked_add_signed(-east)?))
}

fn seconds(year: u64, month: u64, day: u64, time: &str) -> Option<u64> {
    let mut time = time.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    let is_sane = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !is_sane {
        return None;
    }
    // Days by the civil calendar (Hinnant, "chrono-compatible low-level date algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    (days.checked_sub(719_468)?)
        .checked_mul(86_400)?
        .checked_add(hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:01 GMT"), Some(1));
        assert_eq!(http_date("Tue, 24 Nov 2026 19:42:56 GMT"), Some(1_795_549_376));
        assert_eq!(http_date("Tue, 24 Nov 2026 19:42:56 CET"), None);
        assert_eq!(http_date(""), None);
        let second = |text| rfc3339(text).map(|time| time.as_secs());
        assert_eq!(second("2026-11-24T19:42:56.149188992Z"), Some(1_795_549_376));
        assert_eq!(second("2026-11-24T20:42:56+01:00"), Some(1_795_549_376));
        assert_eq!(second("2026-11-24T14:12:56-05:30"), Some(1_795_549_376));
        assert_eq!(second("2024-02-29T00:00:00Z"), Some(1_709_164_800));
        for bad in ["", "2026", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00Z", "2026-11-24T1é:0"]
        {
            assert_eq!(second(bad), None, "{bad}");
        }
    }
}
