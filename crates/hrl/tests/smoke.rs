//! The shortest life of a log: written, abandoned, recovered, continued, sealed, read.

use secondsite_hrl::{Append, FsLogFile, LogId, LogOptions, LogReader, LogWriter, RecoverMode, recover};

#[test]
fn a_log_abandoned_in_the_middle_goes_on_and_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let (log, index) = (folder.path().join("a.hrl"), folder.path().join("a.hrx"));
    let options = LogOptions {
        id: LogId([1; 16]),
        previous_id: LogId::NONE,
        disk_id: [2; 16],
        created_ns: 1_700_000_000_000_000_000,
        first_sequence: 10,
        key: [3; 32],
        keep_space: false,
    };
    let mut writer = LogWriter::create(
        FsLogFile::create_new(&log).unwrap(),
        FsLogFile::create_new(&index).unwrap(),
        options,
    )
    .unwrap();
    let data: Vec<Vec<u8>> = (0..300u32).map(|n| vec![n as u8; 512 * (1 + n as usize % 5)]).collect();
    for (n, data) in data.iter().enumerate().take(200) {
        writer.append(&[Append::write(n as u64 * 4096, data, 1_700_000_000_000_000_000 + n as u64)]).unwrap();
    }
    drop(writer);
    let files = (FsLogFile::open(&log).unwrap(), FsLogFile::open(&index).unwrap());
    let recovered = recover(files.0, files.1, RecoverMode::ProcessDeath).unwrap();
    assert_eq!(recovered.torn, None);
    let mut writer = recovered.writer;
    assert_eq!((writer.entry_count(), writer.next_sequence()), (200, 210));
    for (n, data) in data.iter().enumerate().skip(200) {
        writer.append(&[Append::write(n as u64 * 4096, data, 1_700_000_000_000_000_000 + n as u64)]).unwrap();
    }
    let sealed = writer.seal(1_700_000_000_000_000_500).unwrap();
    assert_eq!(sealed.entry_count, 300);

    for ignore_index in [false, true] {
        let options = secondsite_hrl::ReadOptions { ignore_index, ..Default::default() };
        let reader = LogReader::open_with(&log, options).unwrap();
        let mut n = 0;
        reader
            .entries()
            .unwrap()
            .for_each(|entry| {
                assert_eq!(entry.offset, n as u64 * 4096);
                let mut buffer = vec![0; entry.length_bytes as usize];
                reader.read_data(entry, &mut buffer)?;
                assert!(buffer == data[n]);
                n += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(n, 300);
    }
}
