//! Durations as people write them: `24h`, `90d`, `1h30m`. Pure; shared by the config file and the
//! command line so that one text means one thing everywhere.

use std::time::Duration;

/// Why a duration text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration: write a number and s, m, h, d or w, such as 90m, 24h or 30d")]
pub struct DurationError(pub String);

/// Ten years: longer than anything here may last, short enough for every clock.
const MAX_SECS: u64 = 10 * 366 * 24 * 3600;

/// Reads `1h30m`, `24h`, `90d`.
///
/// # Errors
/// When a number or unit is missing, or the whole is zero or over ten years.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let bad = || DurationError(text.chars().take(40).collect());
    let (mut total, mut number) = (0_u64, None::<u64>);
    for c in text.trim().chars() {
        if let Some(digit) = c.to_digit(10) {
            let so_far = number.unwrap_or(0).checked_mul(10).ok_or_else(bad)?;
            number = Some(so_far.checked_add(u64::from(digit)).ok_or_else(bad)?);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            'w' => 7 * 24 * 3600,
            _ => return Err(bad()),
        };
        let part = number.take().and_then(|n| n.checked_mul(unit));
        total = part.and_then(|p| total.checked_add(p)).ok_or_else(bad)?;
    }
    if number.is_some() || total == 0 || total > MAX_SECS {
        return Err(bad());
    }
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("90d"), Ok(Duration::from_secs(90 * 86_400)));
        for bad in ["", "5", "h", "1h5", "0s", "-1h", "99999999999999999999h", "1y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
