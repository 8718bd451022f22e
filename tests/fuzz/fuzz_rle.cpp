// Feeds strings, polygons and runs that nobody checked to the headers of csrc/rle and csrc/host, under the
// sanitizers.
//
// usage: fuzz_rle <inputs> <seed>. Every input lies in memory of its exact size, so that a read one byte beyond is
// seen. What the headers say of an input is checked, too: a string is taken or refused, taken ones come back as they
// were, the runs of polygons add up to the image.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "host/columns.h"
#include "rle/coco_strings.h"
#include "rle/decoder.h"
#include "rle/encoder.h"
#include "rle/merge.h"
#include "rle/patch.h"
#include "rle/polygons.h"
#include "rle/rle.h"
#include "rle/spans.h"

namespace {

using Runs = std::vector<int32_t>;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_rle: expected %s\n", what);
  std::abort();
}

class Fuzzer {
 public:
  explicit Fuzzer(uint64_t seed) : random_(seed) {}

  void one_input() {
    switch (below(4)) {
      case 0:
        return fuzz_string(mutated(valid_string()));
      case 1:
        return fuzz_string(noise());
      case 2:
        return fuzz_polygon();
      default:
        return fuzz_runs();
    }
  }

  void report() const {
    std::printf("%lld strings taken, %lld refused, %lld polygons, %lld sets of runs\n", taken_, refused_, polygons_,
                sets_);
  }

 private:
  int64_t below(int64_t number) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(number)); }

  int32_t run() {
    static constexpr int64_t kRanges[] = {2, 4, 20, 600, 20000, int64_t{1} << 31};
    return static_cast<int32_t>(below(kRanges[below(6)]));
  }

  std::string valid_string() {
    Runs counts(below(below(4) ? 12 : 3000));
    for (int32_t& count : counts) count = run();
    std::string text;
    s2d::rle::append_string(counts.data(), static_cast<int64_t>(counts.size()), text);
    return text;
  }

  // Cut, repeated, swapped, bits flipped, characters from anywhere.
  std::string mutated(std::string text) {
    for (int64_t changes = below(4); changes > 0 && !text.empty(); --changes) {
      const int64_t size = static_cast<int64_t>(text.size()), place = below(size);
      switch (below(6)) {
        case 0:
          text.resize(place);
          break;
        case 1:
          text[place] = static_cast<char>(below(256));
          break;
        case 2:
          text[place] = static_cast<char>(text[place] ^ 1 << below(8));
          break;
        case 3:
          text.insert(place, text.substr(below(size), below(70)));
          break;
        case 4:
          std::swap(text[place], text[below(size)]);
          break;
        default:
          text.insert(place, below(90), static_cast<char>('0' + below(64)));
      }
    }
    return text;
  }

  std::string noise() {
    std::string text(below(200), ' ');
    const bool legal = below(2);
    for (char& character : text) character = static_cast<char>(legal ? '0' + below(64) : below(256));
    return text;
  }

  void fuzz_string(const std::string& source) {
    const std::unique_ptr<char[]> exact(new char[source.size()]);
    std::copy(source.begin(), source.end(), exact.get());
    const std::string_view text(exact.get(), source.size());
    Runs counts = {7};
    const std::string wrong = s2d::rle::parse_string(text, counts);
    expect(wrong == s2d::rle::strings::explain(text), "the fast path and the careful one to agree");
    if (!wrong.empty()) {
      ++refused_;
      return expect(counts == Runs{7}, "a refused string to leave no runs");
    }
    ++taken_;
    expect(std::all_of(counts.begin(), counts.end(), [](int32_t count) { return count >= 0; }), "runs of at least 0");
    std::string back;
    Runs again;
    s2d::rle::append_string(counts.data() + 1, static_cast<int64_t>(counts.size()) - 1, back);
    expect(s2d::rle::parse_string(back, again).empty(), "a written string to be taken");
    expect(std::equal(again.begin(), again.end(), counts.begin() + 1, counts.end()), "the runs that were written");
  }

  double coordinate(int64_t length) {
    const double place = static_cast<double>(random_() >> 11) * 0x1p-53 * static_cast<double>(length + 1);
    static constexpr double kOdd[] = {0, -0.5, 0.1, 0.5, -1e-300, 1e-300, 3e4, -3e4, 3.9e8, -3.9e8};
    switch (below(8)) {
      case 0:
        return place * 3 - static_cast<double>(length);
      case 1:
        return static_cast<double>(below(2 * length + 2)) / 2;
      case 2:
        return kOdd[below(10)];
      default:
        return place;
    }
  }

  void fuzz_polygon() {
    const int64_t height = below(70), width = below(70), vertices = below(12);
    const std::unique_ptr<double[]> xy(new double[2 * vertices]);
    for (int64_t c = 0; c < 2 * vertices; ++c) xy[c] = coordinate(c % 2 ? height : width);
    Runs counts;
    s2d::rle::polygon_runs(xy.get(), vertices, height, width, counts);
    use_runs(counts, height, width);
    ++polygons_;
  }

  // Arbitrary runs of the right sum, runs of no pixels among them: what a checked code may be.
  Runs arbitrary_runs(int64_t pixels) {
    Runs counts;
    for (int64_t left = pixels; left > 0;) {
      const int64_t count = below(5) ? std::min<int64_t>(left, run()) : 0;
      counts.push_back(static_cast<int32_t>(count));
      left -= count;
    }
    if (below(2)) counts.push_back(0);
    return counts;
  }

  void fuzz_runs() {
    const int64_t height = below(200), width = below(200);
    use_runs(arbitrary_runs(height * width), height, width);
    ++sets_;
  }

  void use_runs(const Runs& source, int64_t height, int64_t width) {
    const auto runs = static_cast<int64_t>(source.size());
    const std::unique_ptr<int32_t[]> exact(new int32_t[source.size()]);
    std::copy(source.begin(), source.end(), exact.get());
    const int32_t* counts = exact.get();
    int64_t sum = 0;
    for (const int32_t count : source) sum += count;
    expect(sum == height * width, "runs that add up to the size");
    const int64_t area = s2d::rle::area_of(counts, runs), stride = s2d::words_for(width);
    const std::unique_ptr<uint64_t[]> words(new uint64_t[height * stride]());
    s2d::rle::Decoder(height).decode(counts, runs, width, [&](int64_t strip, int64_t block, const uint64_t* rows) {
      for (int64_t y = 0; y < std::min<int64_t>(64, height - block * 64); ++y) {
        words[(block * 64 + y) * stride + strip] = rows[y];
      }
    });
    int64_t bits = 0;
    for (int64_t w = 0; w < height * stride; ++w) bits += s2d::popcount(words[w]);
    expect(bits == area, "as many bits as the area");
    Runs back, merged;
    s2d::rle::Encoder(height, width).encode(words.get(), back);
    s2d::rle::Merger().merge({{counts, runs}, {back.data(), static_cast<int64_t>(back.size())}}, height, width, true,
                             merged);
    expect(merged == back, "the intersection of a mask with itself to be the mask");
    const std::unique_ptr<uint8_t[]> pixels(new uint8_t[height * width]());
    s2d::host::draw_runs(counts, runs, pixels.get(), pixels.get() + height * width);
    Runs of_pixels;
    s2d::host::append_runs(pixels.get(), height * width, of_pixels);
    expect(of_pixels == back, "bytes and bits to have the same runs");
    s2d::rle::Patch patch = s2d::rle::patch_of(counts, runs, height, width);
    const std::unique_ptr<uint64_t[]> own(new uint64_t[patch.size()]());
    s2d::rle::draw(counts, runs, height, patch.first_band(), patch.first_column(), patch.columns(), own.get());
    patch.words = own.get();
    int64_t shared = 0;
    s2d::rle::add_shared(patch, &patch, 1, &shared);
    expect(shared == area, "a mask to share all its pixels with itself");
    s2d::rle::Spans spans;
    if (s2d::rle::SpansReader().read(counts, runs, height, spans)) {
      expect(spans.area == area && s2d::rle::shared_spans(spans, spans) == area, "spans to be those of the mask");
    }
  }

  std::mt19937_64 random_;
  long long taken_ = 0, refused_ = 0, polygons_ = 0, sets_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 3, "two arguments: inputs and seed");
  Fuzzer fuzzer(std::strtoull(argv[2], nullptr, 10));
  for (long long input = std::atoll(argv[1]); input > 0; --input) fuzzer.one_input();
  fuzzer.report();
}
