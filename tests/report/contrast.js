// An expression: the contrast of every visible piece of text against what is painted below it (WCAG 2.2, 1.4.3).
(() => {
  const parse = (text) => { const m = text.match(/[\d.]+/g).map(Number); return { rgb: m.slice(0, 3), a: m.length > 3 ? m[3] : 1 }; };
  const over = (top, a, below) => top.map((v, i) => a * v + (1 - a) * below[i]);
  const luminance = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const painted = (node) => {
    const chain = [];
    for (let n = node; n; n = n.parentElement) chain.unshift(parse(getComputedStyle(n).backgroundColor));
    return chain.reduce((below, { rgb, a }) => over(rgb, a, below), [255, 255, 255]);
  };
  const opacity = (node) => { let o = 1; for (let n = node; n; n = n.parentElement) o *= Number(getComputedStyle(n).opacity); return o; };
  const low = [];
  let checked = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    const style = getComputedStyle(node);
    if (!walk.currentNode.textContent.trim() || node.closest('script, style, noscript, [hidden], .skip') || !node.getClientRects().length || style.visibility === 'hidden' || node.disabled || node.closest('option')) continue;
    const svg = Boolean(node.closest('svg'));
    if (svg && (node.closest('.hovertext') || (node.closest('.annotation') && node.closest('.chart').querySelector('.heatmaplayer .hm')))) continue; // numbers on cells have their own test
    checked += 1;
    const background = painted(svg ? node.closest('.chart') || node.closest('svg').parentElement : node);
    const ink = parse(svg ? style.fill : style.color);
    const ratio = contrast(over(ink.rgb, ink.a * opacity(node), background), background);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) low.push(walk.currentNode.textContent.trim().slice(0, 40) + ' ' + (node.className.baseVal ?? node.className) + ' ' + ratio.toFixed(2));
  }
  return { checked, low: [...new Set(low)].slice(0, 20) };
})()
