//! Seconds since 2000 exist in this crate only; everywhere else time is nanoseconds of the Unix epoch.

/// 2000-01-01T00:00:00Z in Unix seconds: 30 years of 365 days and 7 leap days (1972..1996), 10957 days of 86400 s.
const SECONDS_1970_TO_2000: u64 = 10_957 * 86_400;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// Unix nanoseconds to seconds since 2000; clamped to what 32 bits hold (2000 to 2136).
pub fn seconds_since_2000(time_ns: u64) -> u32 {
    let seconds = (time_ns / NS_PER_SECOND).saturating_sub(SECONDS_1970_TO_2000);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Seconds since 2000 to Unix nanoseconds; exact, the largest value is the year 2136.
pub fn unix_ns(seconds: u32) -> u64 {
    (u64::from(seconds) + SECONDS_1970_TO_2000) * NS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_of_the_public_example_is_february_2017() {
        // 2017-02-08T04:13:00Z, from `date -u -d 2017-02-08T04:13:00Z +%s`.
        assert_eq!(unix_ns(539_842_380), 1_486_527_180 * NS_PER_SECOND);
        assert_eq!(seconds_since_2000(1_486_527_180 * NS_PER_SECOND + 999_999_999), 539_842_380);
    }

    #[test]
    fn times_outside_of_the_range_are_clamped() {
        assert_eq!(seconds_since_2000(0), 0);
        assert_eq!(seconds_since_2000(u64::MAX), u32::MAX);
    }
}
