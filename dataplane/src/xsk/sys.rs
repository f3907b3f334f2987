//! The system calls and the mapped memory below AF_XDP and AF_PACKET sockets, in types that
//! cannot be misused.

use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ring::{LOAD_INDEX, Memory, STORE_INDEX};

/// Integers and C structures for which any bytes are a value.
///
/// # Safety
/// As the sentence above says, and there are no pointers in it that the kernel would follow.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for c_int {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_options {}

/// Opens a socket of type SOCK_RAW that a child process does not inherit.
pub(crate) fn raw_socket(family: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes integers and touches no memory of ours. Protocol 0: AF_XDP knows no other,
    // and an AF_PACKET socket with protocol 0 receives nothing.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a socket option to `value`.
pub(crate) fn set_option<T: Plain>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: T,
) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a value that lives on our stack, and a
    // `Plain` type has no pointer for it to follow.
    unsafe { set_option_raw(fd, level, name, &value) }
}

/// # Safety
/// What pointers in `value` point to is what the option wants.
unsafe fn set_option_raw<T>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: pointer and length name `value`; the rest is the caller's promise.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            socklen::<T>(),
        )
    };
    ok(result)
}

/// Reads a socket option.
pub(crate) fn get_option<T: Plain>(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = socklen::<T>();
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has as many.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ok(result)?;
    // SAFETY: zeroed, then written by the kernel; any bytes are a value of a `Plain` type.
    Ok(unsafe { value.assume_init() })
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn ok(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Registers `region` as the memory of an AF_XDP socket, with `tx_metadata_len` bytes of TX
/// metadata in front of each frame that is sent, or 0 for none.
pub(super) fn register_region(
    fd: BorrowedFd<'_>,
    region: &super::Region,
    chunk_size: u32,
    tx_metadata_len: u32,
) -> io::Result<()> {
    let registration = libc::xdp_umem_reg {
        addr: region.base().addr() as u64,
        len: region.len() as u64,
        chunk_size,
        headroom: 0,
        flags: if tx_metadata_len > 0 {
            libc::XDP_UMEM_TX_METADATA_LEN
        } else {
            0
        },
        tx_metadata_len,
    };
    // SAFETY: address and length name the region. The kernel pins its pages, so they outlive even
    // the mapping, and writes only to chunks whose tokens its rings hold.
    unsafe { set_option_raw(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration) }
}

/// Binds an AF_XDP socket.
pub(super) fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    // SAFETY: the kernel reads the address, whose length is told.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            socklen::<libc::sockaddr_xdp>(),
        )
    };
    ok(result)
}

/// Tells the kernel to go on with the tx ring.
pub(super) fn wake_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty message without address: no memory is read.
    let result = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Tells the kernel to go on with the fill ring. Errors say only that it cannot now.
pub(super) fn wake_rx(fd: BorrowedFd<'_>) {
    // SAFETY: nothing is received from an AF_XDP socket by this call, and no memory is written.
    unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
}

/// Name of an interface of this network namespace.
pub(super) fn interface_name(ifindex: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: writes at most IF_NAMESIZE bytes, its end marked by a zero.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let end = name.iter().position(|&byte| byte == 0)?;
    String::from_utf8(name.get(..end)?.to_vec()).ok()
}

/// Index of an interface of this network namespace.
pub(super) fn interface_index(name: &std::ffi::CStr) -> Option<u32> {
    // SAFETY: reads a string that ends in a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// One ring mapped from an AF_XDP socket. Unmapped when dropped, which the socket's end waits for.
#[derive(Debug)]
pub(super) struct MappedRing<D> {
    mapping: NonNull<u8>,
    length: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    descs: NonNull<D>,
    capacity: u32,
}

// SAFETY: the pointers name shared memory that lives as long as the value; one end of a ring is
// used by one thread at a time, since its methods that move the index take `&mut self`.
unsafe impl<D: Send> Send for MappedRing<D> {}

impl<D: Copy> MappedRing<D> {
    /// Maps the ring at page offset `page_offset` (XDP_PGOFF_*) with `capacity` slots of type `D`,
    /// its fields at `offsets`.
    ///
    /// # Safety
    /// The socket has that ring with that many slots of that type, and it is mapped only once.
    pub(super) unsafe fn map(
        fd: BorrowedFd<'_>,
        page_offset: libc::off_t,
        capacity: u32,
        offsets: &libc::xdp_ring_offset,
    ) -> io::Result<Self> {
        let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
        let [producer, consumer, flags, descs] = [
            usize::try_from(offsets.producer).map_err(invalid)?,
            usize::try_from(offsets.consumer).map_err(invalid)?,
            usize::try_from(offsets.flags).map_err(invalid)?,
            usize::try_from(offsets.desc).map_err(invalid)?,
        ];
        let length = descs + capacity as usize * size_of::<D>();
        // SAFETY: a new mapping at an address of the kernel's choice. MAP_POPULATE: the worker
        // shall take no page fault.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                page_offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the kernel says that its fields lie there, in a mapping long enough for them.
        let field = |offset: usize| unsafe { mapping.add(offset) };
        Ok(Self {
            mapping,
            length,
            producer: field(producer).cast(),
            consumer: field(consumer).cast(),
            flags: field(flags).cast(),
            descs: field(descs).cast(),
            capacity,
        })
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: an aligned u32 in the mapping, which both sides access atomically.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: an aligned u32 in the mapping, which both sides access atomically.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn slot(&self, index: u32) -> NonNull<D> {
        let slot = index & (self.capacity - 1);
        // SAFETY: the mask keeps it within the `capacity` slots of the mapping.
        unsafe { self.descs.add(slot as usize) }
    }
}

// SAFETY: the kernel refuses capacities that are not a power of two, and `slot` masks.
unsafe impl<D: Copy> Memory for MappedRing<D> {
    type Desc = D;

    #[inline]
    fn capacity(&self) -> u32 {
        self.capacity
    }

    #[inline]
    fn load_producer(&self) -> u32 {
        self.producer().load(LOAD_INDEX)
    }

    #[inline]
    fn store_producer(&self, index: u32) {
        self.producer().store(index, STORE_INDEX);
    }

    #[inline]
    fn load_consumer(&self) -> u32 {
        self.consumer().load(LOAD_INDEX)
    }

    #[inline]
    fn store_consumer(&self, index: u32) {
        self.consumer().store(index, STORE_INDEX);
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        // SAFETY: an aligned u32 in the mapping, which the kernel writes atomically.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    unsafe fn read(&self, index: u32) -> D {
        // SAFETY: the slot lies in the mapping, and the caller says that nobody writes it.
        unsafe { self.slot(index).read() }
    }

    #[inline]
    unsafe fn write(&self, index: u32, desc: D) {
        // SAFETY: the slot lies in the mapping, and the caller says that nobody else uses it.
        unsafe { self.slot(index).write(desc) };
    }
}

impl<D> Drop for MappedRing<D> {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; the pointers into it go with the value.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.length) };
    }
}
