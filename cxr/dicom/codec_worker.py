"""The program that decodes one compressed DICOM frame; cxr/dicom/codec.py runs it as a process.

Reads one line, `syntax columns rows bits_allocated bits_stored signed cpu_seconds`, and the frame from standard input.
Writes the samples, little endian, to standard output. The exit code is 0 unless decoding failed.
"""

import contextlib
import os
import resource
import sys

_MEMORY_BYTES, _MEMORY_BYTES_A_PIXEL = 1 << 30, 48  # of address space; GDCM and its codecs need about 20 per pixel

_BY_PRECISION = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")


def _decode(request: bytes) -> bytes:
    line, _, frame = request.partition(b"\n")
    syntax, *numbers = line.decode().split()
    columns, rows, bits_allocated, bits_stored, signed, cpu_seconds = map(int, numbers)
    _limit_memory(_MEMORY_BYTES + _MEMORY_BYTES_A_PIXEL * rows * columns)  # a frame may claim a larger size
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))

    import gdcm  # under the memory limit, and after it is set

    if syntax in _BY_PRECISION:
        bits_allocated = 8 if bits_stored <= 8 else 16
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(pixels)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, bits_allocated, bits_stored, bits_stored - 1, signed))
    return bytes(image.GetBuffer().encode("utf-8", "surrogateescape"))  # GDCM returns char* as str


def _limit_memory(limit: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> None:
    answer = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps GDCM's messages out of the samples
    decoded = _decode(sys.stdin.buffer.read())
    with os.fdopen(answer, "wb") as out:
        out.write(decoded)


if __name__ == "__main__":
    _main()
