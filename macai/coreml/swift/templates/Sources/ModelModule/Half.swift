/// The value of a half-precision number, given as its bits.
///
/// `Float16` does not exist on Intel Macs. The exponent is moved to where Float32 has it by a
/// multiplication, which also makes subnormal numbers right.
func float(half bits: UInt16) -> Float {
    let magnitude = UInt32(bits & 0x7FFF)
    let sign = UInt32(bits & 0x8000) << 16
    let value =
        magnitude >= 0x7C00
        ? (magnitude << 13) | 0x7F80_0000  // infinity or not a number
        : (Float(bitPattern: magnitude << 13) * 0x1p112).bitPattern
    return Float(bitPattern: value | sign)
}
