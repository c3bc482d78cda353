-- 3. Antibiotics: prescriptions whose whole GSN text is one of the listed codes.
SELECT hadm_id, icustay_id, seconds(startdate) AS startdate, seconds(enddate) AS enddate
FROM prescriptions
WHERE gsn IN (SELECT gsn FROM antibiotic_gsn)
ORDER BY hadm_id, icustay_id NULLS LAST, startdate NULLS LAST, enddate NULLS LAST
