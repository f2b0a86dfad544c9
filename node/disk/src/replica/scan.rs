//! Asks a file system where a file's data is.

use std::{fs::File, io};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::map::DataMap;

/// The map of a file of `size` bytes. Takes as long as the file has extents, reads none of them.
pub(crate) fn scan(file: &File, size: u64) -> io::Result<DataMap> {
    let mut map = DataMap::new(size);
    let mut at = 0;
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // From here on there is none.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data))?;
        if hole <= data {
            return Err(Errno::IO.into());
        }
        map.mark(data.min(size)..hole.min(size));
        at = hole;
    }
    Ok(map)
}
