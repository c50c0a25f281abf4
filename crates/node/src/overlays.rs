//! Overlays: writable disks over a view or an image, and settling one into its image.

use std::path::Path;
use std::sync::Arc;

use napi_derive::napi;
use secondsite_disk::{Access, BlockDevice, FileDevice, Overlay, OverlayOptions, OverlayState, PointView};

use crate::error::{Result, from_disk};
use crate::live::{NativeOpenOptions, NativeOpenedDisk, boot_id, open_over};
use crate::number::{offset, pairs_of, size};
use crate::recovery::{Device, NativeDevice, overlay, register, replace, view_of, work};

/// Where an overlay lies, and what is below it.
#[napi(object)]
pub struct NativeOverlayOptions {
    /// A folder of its own.
    pub directory: String,
    /// Number of the view below it; without one the image is.
    pub view: Option<u32>,
    /// Path of the image, below the view or below the overlay itself.
    pub image: String,
}

/// What an overlay holds.
#[napi(object)]
pub struct NativeOverlayUsage {
    pub data_bytes: f64,
    pub zero_bytes: f64,
    /// `active`, `settling` or `settled`.
    pub state: String,
}

/// Makes an overlay in a folder that has none.
#[napi(catch_unwind)]
pub fn create_overlay(options: NativeOverlayOptions) -> Result<NativeDevice> {
    let below = Below::of(&options)?;
    let made = Overlay::create(Path::new(&options.directory), below.base, &below.options);
    Ok(register(Device::Overlay(Arc::new(made.map_err(from_disk)?), below.view)))
}

/// Opens the overlay in a folder.
#[napi(catch_unwind)]
pub fn open_overlay(options: NativeOverlayOptions) -> Result<NativeDevice> {
    let below = Below::of(&options)?;
    let image = || open_image(&options.image, Access::Exclusive);
    let opened = Overlay::open(Path::new(&options.directory), below.base, &below.options, &image);
    Ok(register(Device::Overlay(Arc::new(opened.map_err(from_disk)?), below.view)))
}

/// What the overlay in a folder is for: `active`, `settling` or `settled`; nothing where there is none.
#[napi(catch_unwind)]
pub fn overlay_state(directory: String) -> Result<Option<String>> {
    let state = Overlay::state_in(Path::new(&directory)).map_err(from_disk)?;
    Ok(state.map(|state| state_name(state).to_owned()))
}

#[napi(catch_unwind)]
pub fn overlay_usage(handle: u32) -> Result<NativeOverlayUsage> {
    let (overlay, _) = overlay(handle)?;
    let usage = overlay.usage();
    Ok(NativeOverlayUsage {
        data_bytes: size(usage.data_bytes),
        zero_bytes: size(usage.zero_bytes),
        state: state_name(overlay.state()).to_owned(),
    })
}

/// Ranges that an overlay holds, as flat pairs, from `at` on, the first `count` of them.
#[napi(catch_unwind)]
pub fn overlay_ranges(handle: u32, at: f64, count: u32) -> Result<Vec<f64>> {
    Ok(pairs_of(&overlay(handle)?.0.ranges(offset("at", at)?, count as usize)))
}

/// Makes an image what an overlay shows, while it is used.
#[napi(catch_unwind)]
pub fn settle_overlay(handle: u32, image: String, work_handle: Option<u32>) -> Result<()> {
    let (overlay, view) = overlay(handle)?;
    let image = match overlay.settling_image() {
        Some(image) => image,
        None => open_image(&image, Access::Exclusive).map_err(from_disk)?,
    };
    overlay.settle(image, view.as_deref(), &*work(work_handle)?).map_err(from_disk)?;
    replace(handle, Device::Overlay(overlay, None)); // The point is not read any more.
    Ok(())
}

/// Tracks an overlay; `path` of the options is not looked at.
#[napi(catch_unwind)]
pub fn open_tracked_overlay(handle: u32, options: NativeOpenOptions) -> Result<NativeOpenedDisk> {
    open_over(overlay(handle)?.0, &options)
}

/// What an overlay stands on.
struct Below {
    base: Arc<dyn BlockDevice>,
    view: Option<Arc<PointView>>,
    options: OverlayOptions,
}

impl Below {
    fn of(options: &NativeOverlayOptions) -> Result<Self> {
        let named = |base| OverlayOptions::new(boot_id(), base);
        let Some(handle) = options.view else {
            let base = open_image(&options.image, Access::ReadOnly).map_err(from_disk)?;
            return Ok(Self { base, view: None, options: named(u64::MAX) });
        };
        let view = view_of(handle)?;
        Ok(Self { base: view.clone(), options: named(view.point()), view: Some(view) })
    }
}

fn open_image(path: &str, access: Access) -> secondsite_disk::Result<Arc<dyn BlockDevice>> {
    Ok(Arc::new(FileDevice::open(Path::new(path), access)?))
}

fn state_name(state: OverlayState) -> &'static str {
    match state {
        OverlayState::Active => "active",
        OverlayState::Settling => "settling",
        OverlayState::Settled => "settled",
    }
}
